"""`python -m bench gpu`: every table in one run, as text and JSON. Exit status 1 if a cell lacks a time."""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

import torch

from bench import cpu
from bench.gpu import (
    beyond,
    cells,
    int8,
    linear,
    optimizers,
    paged,
    products,
    quantizers,
    setup,
    targets,
    timing,
)
from bench.gpu.cells import Cell
from bench.gpu.run import Run

TABLES = {
    "linear_4bit": linear.linear_4bit,
    "formats": linear.formats,
    "grad_x": beyond.grad_x,
    "grouped": beyond.grouped,
    "layer": beyond.layer,
    "quantizers": quantizers.quantizers,
    "linear_int8": int8.linear_int8,
    "optimizers": optimizers.optimizers,
    "paged": paged.paged,
}
VERSIONS = ("qbits", "torch", "triton", "bitsandbytes", "humming-kernels", "gemlite", "numpy")


def _names(known: Sequence[str]):
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}, want some of {', '.join(known)}")
        return names

    return parse


def _shapes(text: str) -> list[targets.Shape]:
    return [(int(n), int(k)) for n, _, k in (shape.partition("x") for shape in text.split(",") if shape)]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("out/bench/gpu.json"), help="where the JSON goes")
    parser.add_argument("--tables", type=_names(list(TABLES)), default=list(TABLES))
    parser.add_argument(
        "--shapes", type=_shapes, default=[], help="only these weights, as 4096x4096,8192x8192"
    )
    parser.add_argument(
        "--rows", type=_numbers, default=[], help="only these numbers of rows of x, or of tokens"
    )
    parser.add_argument(
        "--peers", type=_names(targets.PEERS), default=list(targets.PEERS), help='"" for none'
    )
    parser.add_argument("--compile", metavar="PEER", choices=products.COMPILED, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _said(*command: str) -> str | None:
    try:
        return (
            subprocess.run(command, capture_output=True, text=True, check=True)
            .stdout.strip()
            .splitlines()[-1]
        )
    except (OSError, IndexError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    """Of an installed package, or of one that is only a folder on the path."""
    try:
        return installed(package)
    except PackageNotFoundError:
        try:
            return getattr(__import__(package), "__version__", None)
        except Exception:
            return None


def machine() -> dict[str, object]:
    if not torch.cuda.is_available():
        raise SystemExit("bench gpu: needs a CUDA device that torch can use")
    properties = torch.cuda.get_device_properties(0)
    nvcc = re.search(r"cuda_(\S+)", _said("nvcc", "--version") or "")
    return {
        "commit": cpu.commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gpu": properties.name,
        "sms": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "processor": cpu.processor(),
        "versions": {
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            "nvcc": nvcc and nvcc[1],
            **{package: _version(package) for package in VERSIONS},
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    if args.compile:
        setup.compile_one(args.compile, args.shapes[0], args.rows)
        return 0

    report = machine()
    run = Run(args.shapes, args.rows, args.peers)
    run.copy_bytes_per_s = timing.copy_bytes_per_s()
    run.matrix_flops_per_s = timing.matrix_flops_per_s()
    ceilings = {"copy_bytes_per_s": run.copy_bytes_per_s, "matrix_flops_per_s": run.matrix_flops_per_s}
    filters = {"tables": args.tables, "shapes": args.shapes, "rows": args.rows, "peers": args.peers}
    print(
        f"{report['gpu']}, driver {report['driver']}, {report['versions']}\n"
        f"copy {run.copy_bytes_per_s * 1e-9:.0f} GB/s, bf16 {run.matrix_flops_per_s * 1e-12:.0f} TFLOP/s"
    )
    seconds: dict[str, float] = {}
    compiled = [peer for peer in products.COMPILED if peer in args.peers]
    if "linear_4bit" in args.tables and compiled:
        seconds["compiling"] = setup.compile_all(compiled, run.shapes(targets.SHAPES), run.rows(targets.ROWS))
    if "linear_int8" in args.tables and "humming" in args.peers:
        shapes, rows = run.shapes(targets.INT8_SHAPES), run.rows(targets.INT8_ROWS)
        seconds["compiling int8"] = setup.compile_all(["humming_int8"], shapes, rows)

    done: list[Cell] = []
    broken: dict[str, str] = {}
    for name in args.tables:
        start = time.perf_counter()
        own: list[Cell] = []
        try:
            own.extend(TABLES[name](run))
            torch.cuda.empty_cache()
        except Exception as exception:  # an error of the device: what is measured so far is kept
            broken[name] = run.why(name, exception)
        seconds[name] = time.perf_counter() - start
        done += own
        for table in dict.fromkeys(cell.table for cell in own):
            print("\n" + cells.table([cell for cell in own if cell.table == table]), flush=True)
        args.json.parent.mkdir(parents=True, exist_ok=True)
        full = report | ceilings | {"filters": filters, "seconds": seconds, "broken": broken}
        full["cells"] = [cell.record() for cell in done]
        args.json.write_text(json.dumps(full, indent=1) + "\n")
    for trace in dict.fromkeys(run.traces):
        print("\n" + trace, end="")
    print("\n" + cells.summary(done, targets.CELLS_MET))
    for name, why in broken.items():
        print(f"{name}: ended early: {why}")
    print("seconds: " + ", ".join(f"{name} {taken:.1f}" for name, taken in seconds.items()))
    return 1 if broken or any(cell.errors for cell in done) else 0
