"""The CPU ops beside bitsandbytes', called in turn in one process: A B A B, median of the ratios.

A table goes to the screen row by row and JSON to --json. The floor of a row is the bytes its op must move at
least (codes, scales, input and output) over the memory bandwidth measured in the same run; "share" is that
over the time taken. A peer that is missing or fails fails its cell, and with it the command.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

import qbits
from qbits import functional, nn

OTHERS = (
    "Other benches: `python -m bench gpu` times the GPU ops, `python -m bench chart` draws its results, "
    "`python -m bench quality` measures what 8 bits lose to outliers, `python -m bench training` trains with "
    "optimizer state in 8 and in 32 bits. Each has a --help."
)
ROWS, COLS = 14336, 4096
BLOCK = 64


@dataclass
class Cell:
    """One op on one input: `ours` and `peer` do the same work; `target` is the least ratio of their times."""

    name: str
    target: float | None
    bytes: int
    ours: Callable[[], object]
    peer: Callable[[], Callable[[], object]]  # makes what is timed: a missing peer fails its cell alone


@dataclass
class Result:
    name: str
    target: float | None
    floor_ms: float
    ms: float = 0.0
    peer_ms: float = 0.0
    ratio: float = 0.0
    cpu_ratio: float = 0.0  # of the CPU time of all threads: less disturbed by other programs
    bandwidth_share: float = 0.0
    met: bool = False
    error: str | None = None


def milliseconds(f: Callable[[], object]) -> tuple[float, float]:
    """Wall time and CPU time of all threads of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    f()
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


def bandwidth() -> float:
    """Bytes per second that torch's threads read together from 256 MiB."""
    data = torch.ones(1 << 25, dtype=torch.int64)
    return data.nbytes / (min(milliseconds(data.sum)[0] for _ in range(9)) * 1e-3)


def measure(cell: Cell, rounds: int, read_bytes_per_s: float) -> Result:
    """At most `rounds` pairs of runs, or fewer but at least three once ten seconds have passed."""
    floor = cell.bytes / read_bytes_per_s * 1e3
    result = Result(name=cell.name, target=cell.target, floor_ms=floor)
    ours: list[tuple[float, float]] = []
    peers: list[tuple[float, float]] = []
    cell.ours()
    try:
        peer = cell.peer()
        peer()
        start = time.perf_counter()
        while len(peers) < 3 or (len(peers) < rounds and time.perf_counter() - start < 10):
            # Three calls of the faster side, so that both see about the same load of the machine.
            ours.append(sorted(milliseconds(cell.ours) for _ in range(3))[1])
            peers.append(milliseconds(peer))
    except Exception as exception:  # whatever the peer raises belongs into its cell
        result.error = f"{type(exception).__name__}: {exception}"
        return result
    result.ms = statistics.median(wall for wall, _ in ours)
    result.peer_ms = statistics.median(wall for wall, _ in peers)
    result.ratio = statistics.median(b[0] / a[0] for a, b in zip(ours, peers, strict=True))
    result.cpu_ratio = statistics.median(b[1] / a[1] for a, b in zip(ours, peers, strict=True))
    result.bandwidth_share = floor / result.ms
    result.met = cell.target is None or result.ratio >= cell.target
    return result


def bitsandbytes_functional():
    import bitsandbytes.functional

    return bitsandbytes.functional


def packed_bytes(numel: int) -> int:
    return numel // 2 + numel // BLOCK * 4


def quantizers(x: torch.Tensor) -> Iterator[Cell]:
    """quantize_4bit and dequantize_4bit, plain and with double quantization, and the 8-bit pair."""
    n = x.numel()
    for quant_type, double, target, back_target in [
        ("nf4", False, 20.0, 2.0),
        ("fp4", False, 20.0, 2.0),
        ("nf4", True, 20.0, 2.0),
    ]:
        options = {"blocksize": BLOCK, "quant_type": quant_type, "compress_statistics": double}
        name = quant_type + (" double" if double else "")
        codes, state = functional.quantize_4bit(x, **options)

        def quantize(options=options):
            peer = bitsandbytes_functional()
            return lambda: peer.quantize_4bit(x, **options)

        def dequantize(options=options):
            peer = bitsandbytes_functional()
            packed, peer_state = peer.quantize_4bit(x, **options)
            return lambda: peer.dequantize_4bit(packed, peer_state)

        moved = packed_bytes(n) + x.nbytes
        yield Cell(
            f"quantize_4bit {name}",
            target,
            moved,
            lambda o=options: functional.quantize_4bit(x, **o),
            quantize,
        )
        yield Cell(
            f"dequantize_4bit {name}",
            back_target,
            moved,
            lambda c=codes, s=state: functional.dequantize_4bit(c, s),
            dequantize,
        )

    def quantize_blockwise():
        peer = bitsandbytes_functional()
        return lambda: peer.quantize_blockwise(x, blocksize=256)

    def dequantize_blockwise():
        peer = bitsandbytes_functional()
        packed, peer_state = peer.quantize_blockwise(x, blocksize=256)
        return lambda: peer.dequantize_blockwise(packed, peer_state)

    codes, state = functional.quantize_blockwise(x, blocksize=256)
    moved = x.nbytes + n + n // 256 * 4
    yield Cell(
        "quantize_blockwise",
        1.0,
        moved,
        lambda: functional.quantize_blockwise(x, blocksize=256),
        quantize_blockwise,
    )
    yield Cell(
        "dequantize_blockwise",
        1.0,
        moved,
        lambda: functional.dequantize_blockwise(codes, state),
        dequantize_blockwise,
    )


def linears(weight: torch.Tensor) -> Iterator[Cell]:
    """Linear4bit of both libraries in eval mode, as a model calls it."""
    dense = torch.nn.Linear(COLS, ROWS, bias=False, dtype=weight.dtype)
    dense.weight = torch.nn.Parameter(weight, requires_grad=False)
    for quant_type, double in [("nf4", False), ("nf4", True), ("fp4", False)]:
        name = quant_type + (" double" if double else "")
        config = qbits.QuantizeConfig(format=quant_type, block_size=BLOCK, double_quant=double)
        layer = nn.Linear4bit.from_float(dense, config).eval()
        peers: dict[str, torch.nn.Module] = {}

        def peer_layer(quant_type=quant_type, double=double, peers=peers):
            if "layer" not in peers:
                import bitsandbytes

                made = bitsandbytes.nn.Linear4bit(
                    COLS,
                    ROWS,
                    bias=False,
                    quant_type=quant_type,
                    compress_statistics=double,
                    compute_dtype=torch.bfloat16,
                )
                made.weight = bitsandbytes.nn.Params4bit(
                    weight,
                    requires_grad=False,
                    quant_type=quant_type,
                    compress_statistics=double,
                    blocksize=BLOCK,
                )
                peers["layer"] = made.to("cpu").eval()
            return peers["layer"]

        for m in (1, 4, 64):
            x = torch.randn(m, COLS).to(torch.bfloat16)

            def peer(x=x, peer_layer=peer_layer):
                made = peer_layer()
                return lambda: made(x)

            yield Cell(
                f"linear_4bit {name} M={m}",
                1.0,
                packed_bytes(ROWS * COLS) + x.nbytes + 2 * m * ROWS,
                lambda x=x, layer=layer: layer(x),
                peer,
            )


HEAD = ("op", "qbits ms", "peer ms", "ratio", "CPU time", "target", "", "floor ms", "share")
WIDTHS = (28, 9, 9, 8, 9, 7, 7, 9, 6)


def line(cells: tuple[str, ...]) -> str:
    return "".join(
        f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, WIDTHS, strict=True))
    )


def row(r: Result) -> str:
    if r.error:
        return f"{r.name:<{WIDTHS[0]}} failed: {r.error}"
    return line(
        (
            r.name,
            f"{r.ms:.2f}",
            f"{r.peer_ms:.2f}",
            f"{r.ratio:.2f}x",
            f"{r.cpu_ratio:.2f}x",
            "-" if r.target is None else f"{r.target:.1f}x",
            "met" if r.met else "missed",
            f"{r.floor_ms:.2f}",
            f"{100 * r.bandwidth_share:.0f} %",
        )
    )


def version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def commit() -> str | None:
    if built := os.environ.get("QBITS_COMMIT"):
        return built
    command = ["git", "rev-parse", "--verify", "-q", "HEAD"]
    run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return run.stdout.strip() or None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, epilog=OTHERS)
    parser.add_argument(
        "--json", "--out", type=Path, default=Path("out/bench/cpu.json"), help="where the JSON goes"
    )
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=7, help="pairs of runs a row")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    qbits.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.randn(ROWS, COLS).to(torch.bfloat16)
    read = bandwidth()
    print(
        f"{ROWS}x{COLS} bfloat16, {args.threads} threads, {qbits.isa()}, {processor()}, "
        f"{read * 1e-9:.1f} GB/s read; peer: bitsandbytes {version('bitsandbytes')}"
    )
    print(line(HEAD))
    results = []
    with torch.no_grad():
        for cells in (quantizers, linears):
            for cell in cells(x):
                if args.only in cell.name:
                    results.append(measure(cell, args.rounds, read))
                    print(row(results[-1]), flush=True)
    report = {
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": processor(),
        "isa": qbits.isa(),
        "threads": args.threads,
        "read_bytes_per_s": read,
        "versions": {name: version(name) for name in ("qbits", "torch", "bitsandbytes")},
        "rows": [asdict(result) for result in results],
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 1 if any(result.error for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
