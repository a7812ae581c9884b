"""Makes the peers that compile for each shape do so before anything is measured, in processes of their own.

What they compile they keep on disk, so that the bench itself finds it there.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from bench.gpu import products, targets


def compile_one(peer: str, shape: targets.Shape, rows: Sequence[int]) -> None:
    """What a child process does: one product of that peer for each number of rows."""
    n, k = shape
    product = products.CONTENDERS[peer](torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * 0.02)
    # Triton's tuner keeps the arguments of the call in itself: one at a time.
    with ThreadPoolExecutor(1 if peer == "gemlite" else len(rows)) as pool:
        list(pool.map(lambda m: product.calls[0](*products.inputs(m, k, 1)), rows))
    torch.cuda.synchronize()


def compile_all(
    peers: Sequence[str], shapes: Sequence[targets.Shape], rows: Sequence[int]
) -> dict[str, float]:
    """Seconds until all processes of each peer are done. What fails says so here and again in its cells."""
    start = time.perf_counter()
    children = {}
    for peer in peers:
        for n, k in shapes:
            command = [
                sys.executable,
                "-m",
                "bench",
                "gpu",
                "--compile",
                peer,
                "--shapes",
                f"{n}x{k}",
                "--rows",
            ]
            children[peer, n, k] = subprocess.Popen(
                [*command, ",".join(map(str, rows))], stdout=subprocess.DEVNULL
            )
    seconds = {}
    for (peer, n, k), child in children.items():
        if child.wait() != 0:
            print(f"{peer} did not compile for {n}x{k}: exit status {child.returncode}", flush=True)
        seconds[peer] = time.perf_counter() - start
    return seconds
