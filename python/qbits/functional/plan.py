"""Which kernel an op would take, in words."""

from __future__ import annotations

import torch

from qbits import _C
from qbits.codec import dtype_name
from qbits.ops._library import as_block_size


def linear_4bit_plan(
    format: str,
    rows: int,
    cols: int,
    block_size: int = 64,
    m: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    *,
    compute_capability: tuple[int, int] | None = None,
    sm_count: int = 0,
) -> str:
    """The kernel `linear_4bit` takes and in what shape, in one line for people to read; its words may change.

    Args:
        format: of the weight, a 4-bit one, its scales not double-quantized.
        rows, cols: N and K of the weight.
        block_size: one of the format's.
        m: rows of x, its leading dimensions multiplied.
        dtype: of x: float32, bfloat16 or float16.
        device: "cpu", that is this one in the instruction set in use, or a CUDA device of this machine.
        compute_capability, sm_count: a CUDA device that need not be here, in place of `device`: (9, 0) and
            132 multiprocessors for instance. One goes with the other; the least is (7, 5).

    Returns:
        For instance "cpu avx2, few rows of x, 128 tiles 1x32, 2 threads" or
        "mma 8x32x512, chunk 64, 6 stages, 138240 B shared, 128 blocks (smallest tile that holds m)".

    Raises:
        ValueError: a format, block size, size or device there is not.
        TypeError: another dtype.
        NotImplementedError: more output than one CUDA launch covers.
    """
    op = "linear_4bit_plan"
    device_facts = _device_facts(op, device, compute_capability, sm_count)
    block_size = as_block_size(op, block_size)
    return _C.linear_4bit_plan(format, rows, cols, block_size, m, dtype_name(dtype), *device_facts)


def grouped_linear_4bit_plan(
    format: str,
    experts: int,
    rows: int,
    cols: int,
    block_size: int = 64,
    m: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    *,
    compute_capability: tuple[int, int] | None = None,
    sm_count: int = 0,
) -> str:
    """The kernel `grouped_linear_4bit` takes, as `linear_4bit_plan` says of `linear_4bit`.

    Args:
        format: of the weight, a 4-bit one.
        experts, rows, cols: E, N and K of the weight.
        block_size: one of the format's.
        m: rows of x, of all experts together.
        dtype: of x: float32, bfloat16 or float16.
        device, compute_capability, sm_count: as for `linear_4bit_plan`.

    Raises:
        ValueError: a format, block size, size or device there is not.
        TypeError: another dtype.
        NotImplementedError: more output than one CUDA launch covers.
    """
    op = "grouped_linear_4bit_plan"
    device_facts = _device_facts(op, device, compute_capability, sm_count)
    block_size = as_block_size(op, block_size)
    return _C.grouped_linear_4bit_plan(
        format, experts, rows, cols, block_size, m, dtype_name(dtype), *device_facts
    )


def _device_facts(
    op: str, device: torch.device | str, compute_capability: tuple[int, int] | None, sm_count: int
) -> tuple[int | None, int]:
    """What libqbits asks of a device: 10 * major + minor, or None for the CPU, and its multiprocessors."""
    device = torch.device(device)
    if compute_capability is not None and not (
        isinstance(compute_capability, tuple) and len(compute_capability) == 2 and sm_count > 0
    ):
        got = f"{compute_capability!r} with sm_count {sm_count!r}"
        raise ValueError(f"[{op}] compute_capability: got {got}, want (major, minor) with sm_count above 0")
    if compute_capability is None and sm_count:
        raise ValueError(f"[{op}] sm_count: got {sm_count!r} alone, want it with compute_capability")
    if compute_capability is not None and device.type != "cpu":
        raise ValueError(f"[{op}] device: got {device} beside compute_capability, want one of the two")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            want = "one that torch can use, or compute_capability and sm_count in its place"
            raise ValueError(f"[{op}] device: got {device}, want {want}")
        facts = torch.cuda.get_device_properties(device)
        compute_capability, sm_count = (facts.major, facts.minor), facts.multi_processor_count
    elif device.type != "cpu":
        raise ValueError(f"[{op}] device: got {device}, want cpu or a cuda device")
    if compute_capability is None:
        return None, sm_count
    return 10 * compute_capability[0] + compute_capability[1], sm_count
