"""What a bug report needs to say about a machine: `python -m qbits`. Needs nothing but torch."""

from __future__ import annotations

import platform
import re
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

import qbits
from qbits import runtime
from qbits.cli.self_test import self_test

_PEERS = ("transformers", "peft", "accelerate", "safetensors", "bitsandbytes")


def diagnosis() -> tuple[str, bool]:
    """The report as lines of `name: value`, and whether every self-test passed."""
    lines = [f"{name + ':':<13}{value}" for name, value in _facts()]
    passed = True
    for device in ("cpu", *(["cuda"] if _cuda_usable() else [])):
        outcome, ok = _self_test(device)
        lines.append(f"{'self-test:':<13}{outcome}")
        passed &= ok
    return "\n".join(lines), passed


def _self_test(device: str) -> tuple[str, bool]:
    try:
        result = self_test(device)
    except Exception as error:  # a build too broken to compute is what the report is for
        return f"FAILED on {device}: {type(error).__name__}: {error}", False
    return str(result), result.passed


def _facts() -> Iterator[tuple[str, str]]:
    yield "qbits", f"{qbits.__version__}, {Path(qbits.__file__).parent}"
    yield "torch", f"{torch.__version__}"
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield (
        "packages",
        ", ".join(f"{name} {version}" for name in _PEERS if (version := _version(name))) or "none",
    )
    yield "system", platform.platform()
    yield "processor", f"{_processor()}, {runtime.isa()} in use of {', '.join(runtime.available_isas())}"
    yield "threads", f"{runtime.num_threads()} (torch: {torch.get_num_threads()})"
    yield "CUDA archs", ", ".join(runtime.cuda_archs()) or "none: this build has no CUDA"
    if runtime.cuda_archs():
        yield "CUDA", f"runtime {_cuda_version(runtime.cuda_runtime_version())}, driver {_driver()}"
    if reason := runtime.cuda_unavailable_reason():
        yield "CUDA state", reason
    yield "torch CUDA", torch.version.cuda or "none: this torch has no CUDA"
    for index, device in enumerate(_devices()):
        yield f"device {index}", device
    yield "formats", ", ".join(qbits.FORMATS)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The model name Linux gives, elsewhere what Python knows."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else "none"


def _driver() -> str:
    """The CUDA version the driver supports and, on Linux, the driver's own version."""
    try:
        found = re.search(r"Kernel Module\D*([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    return _cuda_version(runtime.cuda_driver_version()) + (f" ({found[1]})" if found else "")


def _torch_sees_cuda() -> bool:
    with warnings.catch_warnings():  # a driver too old for torch warns; the report says it in its own words
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def _cuda_usable() -> bool:
    return not runtime.cuda_unavailable_reason() and _torch_sees_cuda()


def _devices() -> Iterator[str]:
    if _torch_sees_cuda():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            yield f"{device.name}, {device.major}.{device.minor}, {device.total_memory / 2**30:.1f} GiB"
