"""The floats of a 4-bit codebook tensor, with plain or double-quantized scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qbits import _C
from qbits.ops._library import (
    FLOATS,
    check_absmax,
    check_block_size,
    check_dtype,
    check_format,
    check_shape,
    check_tensor,
    define,
    refuse_grad,
)

OP = "dequantize_4bit"


def _output(
    codes: Tensor,
    absmax: Tensor,
    format: str,
    block_size: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    nested_absmax: Tensor | None = None,
    nested_code: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    row = check_format(OP, format, coding="codebook", bits=4)
    check_block_size(OP, row, block_size)
    check_dtype(OP, "dtype", dtype, FLOATS)
    n = check_shape(OP, "shape", shape)
    check_tensor(OP, "codes", codes, (torch.uint8,), numel=row.codes_size(n))
    blocks = row.num_scales(1, n, block_size)
    check_absmax(OP, absmax, blocks, codes.device, nested_absmax, nested_code, offset)
    refuse_grad(OP, "absmax.detach()", absmax, nested_absmax, nested_code, offset)
    return codes.new_empty(shape, dtype=dtype)


def _kernel(
    codes: Tensor,
    absmax: Tensor,
    format: str,
    block_size: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    nested_absmax: Tensor | None = None,
    nested_code: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    out = _output(codes, absmax, format, block_size, shape, dtype, nested_absmax, nested_code, offset)
    nested = (None if t is None else t.contiguous() for t in (nested_absmax, nested_code, offset))
    _C.dequantize_4bit(codes.contiguous(), absmax.contiguous(), format, block_size, out, *nested)
    return out


dequantize_4bit = define(
    "dequantize_4bit(Tensor codes, Tensor absmax, str format, int block_size, SymInt[] shape, ScalarType"
    " dtype, Tensor? nested_absmax=None, Tensor? nested_code=None, Tensor? offset=None) -> Tensor",
    _kernel,
    _output,
)
