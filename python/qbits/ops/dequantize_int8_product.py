"""The floats that an integer product of two quantized matrices stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from qbits import _C
from qbits.ops._library import (
    FLOATS,
    check,
    check_dtype,
    check_row_scales,
    check_tensor,
    check_vector,
    define,
    refuse_grad,
)

OP = "dequantize_int8_product"


def _output(
    dots: Tensor, row_scales: Tensor, column_scales: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    check_dtype(OP, "dtype", dtype, FLOATS)
    check_tensor(OP, "dots", dots, (torch.int32,))
    check(dots.dim() > 0, OP, "dots", "0 dimensions", "at least 1")
    check_row_scales(OP, "row_scales", row_scales, dots)
    check_vector(OP, "column_scales", column_scales, (torch.float32,), dots.device, dots.shape[-1])
    if bias is not None:
        check_vector(OP, "bias", bias, (dtype,), dots.device, dots.shape[-1])
    refuse_grad(OP, "the detached tensors", row_scales, column_scales, bias)
    return dots.new_empty(dots.shape, dtype=dtype)


def _kernel(
    dots: Tensor, row_scales: Tensor, column_scales: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    out = _output(dots, row_scales, column_scales, bias, dtype)
    _C.dequantize_int8_product(
        dots.contiguous(),
        row_scales.contiguous(),
        column_scales.contiguous(),
        None if bias is None else bias.contiguous(),
        out,
    )
    return out


dequantize_int8_product = define(
    f"{OP}(Tensor dots, Tensor row_scales, Tensor column_scales, Tensor? bias, ScalarType dtype) -> Tensor",
    _kernel,
    _output,
)
