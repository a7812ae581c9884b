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

LIMIT_SECONDS = 90.0


def compile_one(peer: str, shape: targets.Shape, rows: Sequence[int]) -> None:
    """What a child process does: one product of that peer for each number of rows."""
    n, k = shape
    start = time.perf_counter()
    dtype = torch.float16 if peer == "humming_int8" else torch.bfloat16
    product = products.COMPILED[peer](torch.randn(n, k, device="cuda", dtype=dtype) * 0.02)
    made = time.perf_counter()
    # Triton's tuner keeps the arguments of the call in itself: one at a time.
    with ThreadPoolExecutor(1 if peer == "gemlite" else len(rows)) as pool:
        list(pool.map(lambda m: product.calls[0](*products.inputs(m, k, 1, dtype)), rows))
    torch.cuda.synchronize()
    taken = f"weight {made - start:.1f} s, kernels {time.perf_counter() - made:.1f} s"
    print(f"{peer} {n}x{k}: {taken}", flush=True)


def compile_all(peers: Sequence[str], shapes: Sequence[targets.Shape], rows: Sequence[int]) -> float:
    """Seconds until all processes are done. What fails says so here, and again in its cells."""
    start = time.perf_counter()
    children = {}
    for peer in peers:
        for n, k in shapes:
            command = [sys.executable, "-m", "bench", "gpu", "--compile", peer, "--shapes", f"{n}x{k}"]
            numbers = ",".join(map(str, rows))
            children[peer, n, k] = subprocess.Popen([*command, "--rows", numbers])
    for (peer, n, k), child in children.items():
        try:
            child.wait(max(1.0, start + LIMIT_SECONDS - time.perf_counter()))
        except subprocess.TimeoutExpired:
            child.kill()
        if child.wait() != 0:
            print(f"{peer} did not compile for {n}x{k}: exit status {child.returncode}", flush=True)
    return time.perf_counter() - start
