"""The floats of a linearly quantized tensor: r = s (q - z)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qbits import _C
from qbits.ops._library import (
    FLOATS,
    check,
    check_affine,
    check_block_size,
    check_dtype,
    check_format,
    check_shape,
    check_tensor,
    define,
    refuse_grad,
)

OP = "dequantize_affine"


def _output(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    format: str,
    group_size: int,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    row = check_format(OP, format, coding="affine")
    check_block_size(OP, row, group_size, "group size")
    check_dtype(OP, "dtype", dtype, FLOATS)
    n = check_shape(OP, "shape", shape)
    check(len(shape) > 0, OP, "shape", "0 dimensions", "at least 1")
    check_tensor(OP, "codes", codes, (torch.uint8,), numel=row.codes_size(n))
    num_scales = row.num_scales(math.prod(shape[:-1]), shape[-1], group_size)
    check_affine(OP, row, scales, zeros, num_scales, codes.device)
    refuse_grad(OP, "scales.detach()", scales, zeros)
    return codes.new_empty(shape, dtype=dtype)


def _kernel(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    format: str,
    group_size: int,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    out = _output(codes, scales, zeros, format, group_size, shape, dtype)
    _C.dequantize_affine(codes.contiguous(), scales.contiguous(), zeros.contiguous(), format, group_size, out)
    return out


dequantize_affine = define(
    "dequantize_affine(Tensor codes, Tensor scales, Tensor zeros, str format, int group_size, SymInt[]"
    " shape, ScalarType dtype) -> Tensor",
    _kernel,
    _output,
)
