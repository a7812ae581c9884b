"""What the op files share: the torch library, the definition of an op and the checks of its arguments.

The checks run for real and for fake tensors alike, so that torch.compile refuses what eager refuses. On
symbolic sizes they become guards or, for unbacked ones, run-time assertions.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qbits import _C
from qbits.formats import FORMATS, NESTED_BLOCK_SIZE, Format

LIBRARY = torch.library.Library("qbits", "DEF")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FLOAT32 = torch.finfo(torch.float32)
MAX_DIMS = 8


def define(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    leading_dimensions: bool | Callable[..., bool] = False,
) -> Any:
    """Defines `torch.ops.qbits.<name>` with one kernel for CPU and CUDA and returns its overload.

    Not `torch.library.custom_op`: a call of that costs several times as much.

    `leading_dimensions`: whether the first argument has any number of them, which the result has too; then
    torch.vmap over it is one call. A function says for which arguments that is so.
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"qbits::{name}", fake, lib=LIBRARY)
    overload = getattr(torch.ops.qbits, name).default
    if leading_dimensions:
        one_call = leading_dimensions if callable(leading_dimensions) else _always
        rule = functools.partial(_vmap, overload, one_call)
        torch.library.register_vmap(f"qbits::{name}", rule, lib=LIBRARY)
    return overload


def _always(*args: Any) -> bool:
    return True


def _vmap(
    overload: Any, one_call: Callable[..., bool], info: Any, in_dims: Sequence[int | None], *args: Any
) -> tuple[Tensor, int]:
    """The rule of torch.vmap: one call for a batch of the first argument, else one for each element."""
    if all(dim is None for dim in in_dims[1:]) and (info.batch_size == 0 or one_call(*args)):
        return overload(args[0].movedim(in_dims[0], 0), *args[1:]), 0
    parts = [
        [arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims, strict=True)]
        for i in range(info.batch_size)
    ]
    return torch.stack([overload(*part) for part in parts]), 0


bypasses_dispatcher = _C.bypasses_dispatcher
"""Whether torch's dispatcher would only take its time before it calls the kernel of an op.

That is so where nothing looks on (a mode, a transform of torch.func, a tracer, the profiler), the op's first
argument is exactly a Tensor, the others that are given are None, Tensors or Parameters, and no tensor is
negated. Tensors without plain memory are left for the kernel to refuse, and gradients for the caller to see
to. Kernels and observers that other libraries register with the dispatcher do not see such a call.
"""


def refuse_grad(op: str, advice: str, *tensors: Tensor | None) -> None:
    """Raises RuntimeError if a gradient would be lost: the raw ops have none."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                raise RuntimeError(
                    f"[{op}] gradient: got an input that requires grad, want {advice}, or torch.no_grad()"
                )


def check(condition: bool | torch.SymBool, op: str, what: str, got: object, want: object) -> None:
    """Raises ValueError unless `condition`, which may be symbolic."""
    if condition is not True:
        torch._check_value(condition, lambda: f"[{op}] {what}: got {got}, want {want}")


def describe(tensor: Tensor) -> str:
    """For messages: "float32[3, 5] on cpu"."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} on {tensor.device}"


def check_dtype(op: str, what: str, dtype: torch.dtype, dtypes: Sequence[torch.dtype]) -> None:
    """Raises TypeError unless `dtype` is one of `dtypes`."""
    if dtype not in dtypes:
        want = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"[{op}] {what}: got {str(dtype).removeprefix('torch.')}, want {want}")


def check_is_tensor(op: str, what: str, value: object) -> None:
    """Raises TypeError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"[{op}] {what}: got {type(value).__name__}, want a tensor")


def check_tensor(
    op: str,
    what: str,
    tensor: Tensor,
    dtypes: Sequence[torch.dtype],
    device: torch.device | None = None,
    numel: int | None = None,
) -> None:
    """Checks the dtype, dimensions, device and number of elements of an argument."""
    check_dtype(op, what, tensor.dtype, dtypes)
    check(tensor.dim() <= MAX_DIMS, op, what, f"{tensor.dim()} dimensions", f"at most {MAX_DIMS}")
    if device is not None and tensor.device != device:
        raise ValueError(f"[{op}] {what}: got {describe(tensor)}, want a tensor on {device}")
    if numel is not None and (condition := tensor.numel() == numel) is not True:
        check(condition, op, what, describe(tensor), f"{numel} elements")


def check_vector(
    op: str, what: str, tensor: Tensor, dtypes: Sequence[torch.dtype], device: torch.device, size: int
) -> None:
    """Checks an argument that is [size]."""
    check_tensor(op, what, tensor, dtypes, device, size)
    check(tensor.dim() == 1, op, what, describe(tensor), "1 dimension")


def check_row_scales(op: str, what: str, scales: Tensor, rows: Tensor) -> None:
    """Checks that there is one scale for each row of a tensor [..., cols]."""
    shape = rows.shape[:-1]
    check_tensor(op, what, scales, (torch.float32,), rows.device)
    check(scales.dim() == len(shape), op, what, describe(scales), f"the shape {list(shape)}")
    for got, want in zip(scales.shape, shape, strict=True):
        check(got == want, op, what, describe(scales), f"the shape {list(shape)}")


def check_format(op: str, name: str, coding: str | None = None, bits: int | None = None) -> Format:
    """The row called `name`, of this coding and number of bits. Raises ValueError listing those that fit."""
    row = FORMATS.get(name)
    if row is None or (coding and row.coding != coding) or (bits and row.bits != bits):
        fitting = (f for f in FORMATS.values() if coding in (None, f.coding) and bits in (None, f.bits))
        raise ValueError(f"[{op}] format: got {name!r}, want one of {', '.join(f.name for f in fitting)}")
    return row


def check_block_size(op: str, row: Format, block_size: int, what: str = "block size") -> None:
    """Raises ValueError unless `block_size` is in the table (or 0, where the format has whole rows)."""
    if block_size not in row.block_sizes and not (row.whole_rows and block_size == 0):
        raise ValueError(f"[{op}] {what}: got {block_size}, want {row.describe_block_sizes()}")


def as_block_size(op: str, block_size: object) -> int:
    """`block_size` as an int the op can be given; torch says of another one only that its type is wrong.

    Raises TypeError for no integer, ValueError for one beyond 64 bits.
    """
    try:
        size = operator.index(block_size)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"[{op}] block size: got {block_size!r}, want an int") from None
    if not -(2**63) <= size < 2**63:
        raise ValueError(f"[{op}] block size: got {size}, want one from 16 to 4096")
    return size


def check_shape(op: str, what: str, shape: Sequence[int]) -> int:
    """The product of `shape`, whose sizes must be at least 0."""
    for size in shape:
        if (condition := size >= 0) is not True:
            check(condition, op, what, list(shape), "sizes of at least 0")
    check(len(shape) <= MAX_DIMS, op, what, f"{len(shape)} dimensions", f"at most {MAX_DIMS}")
    # torch computes the strides of an empty tensor too, as if its sizes of 0 were 1; and bytes, not elements.
    extent = math.prod(size or 1 for size in shape if type(size) is int)
    check(extent < 2**60, op, what, list(shape), "sizes whose strides fit 64 bits")
    return math.prod(shape)


def check_absmax(
    op: str,
    absmax: Tensor,
    blocks: int,
    device: torch.device,
    nested_absmax: Tensor | None,
    nested_code: Tensor | None,
    offset: Tensor | None,
) -> None:
    """Checks the scales of a codebook weight: plain, or complete in their double-quantized parts."""
    if nested_absmax is None and nested_code is None and offset is None:
        check_tensor(op, "absmax", absmax, (torch.float32,), device, blocks)
        return
    if nested_absmax is None or nested_code is None or offset is None:
        raise ValueError(
            f"[{op}] double-quantized absmax: got only some of nested_absmax, nested_code and offset, "
            "want all three or none"
        )
    check_tensor(op, "absmax", absmax, (torch.uint8,), device, blocks)
    nested_blocks = (blocks + NESTED_BLOCK_SIZE - 1) // NESTED_BLOCK_SIZE
    check_tensor(op, "nested_absmax", nested_absmax, (torch.float32,), device, nested_blocks)
    check_tensor(op, "nested_code", nested_code, (torch.float32,), device, 256)
    check_tensor(op, "offset", offset, (torch.float32,), device, 1)


def check_affine(
    op: str, row: Format, scales: Tensor, zeros: Tensor, numel: int, device: torch.device
) -> None:
    """Checks the scales and zeros of an affine weight that has `numel` groups."""
    check_tensor(op, "scales", scales, row.scale_dtypes, device, numel)
    check_tensor(op, "zeros", zeros, (scales.dtype,), device, numel)


def check_weight_4bit(
    op: str,
    device: torch.device,
    codes: Tensor,
    scales: Tensor,
    format: str,
    block_size: int,
    n: int,
    k: int,
    zeros: Tensor | None,
    nested_absmax: Tensor | None,
    nested_code: Tensor | None,
    offset: Tensor | None,
) -> None:
    """Checks the tensors of an [n, k] weight in a 4-bit format."""
    row = check_format(op, format, bits=4)
    check_block_size(op, row, block_size)
    numel = check_shape(op, "weight shape", (n, k))
    check_tensor(op, "codes", codes, (torch.uint8,), device, row.codes_size(numel))
    num_scales = row.num_scales(n, k, block_size)
    if row.coding == "codebook":
        if zeros is not None:
            raise ValueError(f"[{op}] zeros: got a tensor, want None for {format}")
        check_absmax(op, scales, num_scales, device, nested_absmax, nested_code, offset)
        return
    if zeros is None:
        raise ValueError(f"[{op}] zeros: got None, want a tensor for {format}")
    if nested_absmax is not None or nested_code is not None or offset is not None:
        raise ValueError(f"[{op}] nested scales: got a tensor, want None for {format}")
    check_affine(op, row, scales, zeros, num_scales, device)


def check_threshold(op: str, threshold: float) -> None:
    """Checks where outliers of LLM.int8() begin: 0, for none, or a number above that float32 holds."""
    # libqbits takes it as a float32, in which a smaller one may be 0 and a larger one is infinite.
    fits = threshold == 0 or FLOAT32.smallest_normal <= threshold <= FLOAT32.max
    check(fits, op, "threshold", threshold, "0 or a positive number within float32's normal range")


def is_weight_only(op: str, activation_bits: object, threshold: object) -> bool:
    """Whether a product with int8 rows takes x as it is. Raises ValueError unless it has 8 or 16 bits.

    With 16 there are no outliers: the threshold must be 0.
    """
    if type(activation_bits) is not int or activation_bits not in (8, 16):
        raise ValueError(f"[{op}] activation_bits: got {activation_bits!r}, want 8 or 16")
    if activation_bits == 16 and threshold != 0:
        raise ValueError(f"[{op}] threshold: got {threshold}, want 0 where activation_bits is 16")
    return activation_bits == 16


def check_int8_sizes(op: str, rows: int, cols: int) -> None:
    """Checks the sizes of an operand of an int8 product, symbolic ones not: the op checks when it runs."""
    # A guard on a symbolic size would bound dimensions that torch.export is told are free.
    if any(condition is False for condition in (cols < 2**31, rows < 2**59, rows * cols < 2**59)):
        check(False, op, "sizes", f"{rows} rows of {cols}", "columns below 2^31, that fit")


def check_linear_int8(op: str, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> int:
    """Checks the operands of a product with a weight of int8 rows; returns the number of these."""
    check_tensor(op, "x", x, FLOATS)
    check(x.dim() > 0, op, "x", "0 dimensions", "at least 1")
    check_tensor(op, "weight codes", codes, (torch.int8,), x.device)
    check(codes.dim() == 2, op, "weight codes", describe(codes), "2 dimensions")
    n, k = codes.shape
    check_vector(op, "weight scales", scales, (torch.float32,), x.device, n)
    check(x.shape[-1] == k, op, "x", describe(x), f"a last dimension of {k}")
    rows = math.prod(x.shape[:-1])
    check_int8_sizes(op, rows, k)
    check_int8_sizes(op, rows, n)
    if bias is not None:
        check_vector(op, "bias", bias, (x.dtype,), x.device, n)
    return n
