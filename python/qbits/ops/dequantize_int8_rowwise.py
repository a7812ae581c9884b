"""The floats of rows in 8 bits with one scale each."""

from __future__ import annotations

import torch
from torch import Tensor

from qbits import _C
from qbits.ops._library import FLOATS, check, check_dtype, check_row_scales, check_tensor, define, refuse_grad

OP = "dequantize_int8_rowwise"


def _output(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    check_dtype(OP, "dtype", dtype, FLOATS)
    check_tensor(OP, "codes", codes, (torch.int8,))
    check(codes.dim() > 0, OP, "codes", "0 dimensions", "at least 1")
    check_row_scales(OP, "scales", scales, codes)
    refuse_grad(OP, "scales.detach()", scales)
    return codes.new_empty(codes.shape, dtype=dtype)


def _kernel(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    out = _output(codes, scales, dtype)
    _C.dequantize_int8_rowwise(codes.contiguous(), scales.contiguous(), out)
    return out


dequantize_int8_rowwise = define(
    "dequantize_int8_rowwise(Tensor codes, Tensor scales, ScalarType dtype) -> Tensor", _kernel, _output
)
