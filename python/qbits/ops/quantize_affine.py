"""Linear quantization r = s (q - z), with a scale and a zero point per group of a row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qbits import _C
from qbits.ops._library import (
    FLOATS,
    check,
    check_block_size,
    check_dtype,
    check_format,
    check_tensor,
    define,
    refuse_grad,
)

OP = "quantize_affine"


def _outputs(
    x: Tensor, format: str, group_size: int, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    row = check_format(OP, format, coding="affine")
    check_block_size(OP, row, group_size, "group size")
    check_dtype(OP, "scale dtype", scale_dtype, row.scale_dtypes)
    check_tensor(OP, "x", x, FLOATS)
    check(x.dim() > 0, OP, "x", "0 dimensions", "at least 1")
    refuse_grad(OP, "x.detach()", x)
    codes = x.new_empty(row.codes_size(x.numel()), dtype=torch.uint8)
    groups = (math.prod(x.shape[:-1]), row.groups(x.shape[-1], group_size))
    return codes, x.new_empty(groups, dtype=scale_dtype), x.new_empty(groups, dtype=scale_dtype)


def _kernel(
    x: Tensor, format: str, group_size: int, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _outputs(x, format, group_size, scale_dtype)
    _C.quantize_affine(x.contiguous(), format, group_size, *outputs)
    return outputs


quantize_affine = define(
    "quantize_affine(Tensor x, str format, int group_size, ScalarType scale_dtype) -> (Tensor codes,"
    " Tensor scales, Tensor zeros)",
    _kernel,
    _outputs,
)
