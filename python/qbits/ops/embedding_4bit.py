"""Rows of a 4-bit weight, gathered and dequantized."""

from __future__ import annotations

import torch
from torch import Tensor

from qbits import _C
from qbits.ops._library import (
    FLOATS,
    MAX_DIMS,
    check,
    check_dtype,
    check_shape,
    check_tensor,
    check_weight_4bit,
    define,
    refuse_grad,
)

OP = "embedding_4bit"


def _output(
    indices: Tensor,
    codes: Tensor,
    scales: Tensor,
    format: str,
    block_size: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    zeros: Tensor | None = None,
    nested_absmax: Tensor | None = None,
    nested_code: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    check_weight_4bit(
        OP, indices.device, codes, scales, format, block_size, n, k, zeros, nested_absmax, nested_code, offset
    )
    check_tensor(OP, "indices", indices, (torch.int64, torch.int32))
    check(indices.dim() < MAX_DIMS, OP, "indices", f"{indices.dim()} dimensions", f"at most {MAX_DIMS - 1}")
    check_dtype(OP, "dtype", dtype, FLOATS)
    refuse_grad(OP, "scales.detach()", scales, zeros, nested_absmax, nested_code, offset)
    shape = (*indices.shape, k)
    check_shape(OP, "out", shape)
    return indices.new_empty(shape, dtype=dtype)


def _kernel(
    indices: Tensor,
    codes: Tensor,
    scales: Tensor,
    format: str,
    block_size: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    zeros: Tensor | None = None,
    nested_absmax: Tensor | None = None,
    nested_code: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    out = _output(
        indices,
        codes,
        scales,
        format,
        block_size,
        n,
        k,
        dtype,
        zeros,
        nested_absmax,
        nested_code,
        offset,
    )
    _C.embedding_4bit(
        indices.contiguous(),
        codes,
        scales,
        format,
        block_size,
        n,
        k,
        out,
        zeros,
        nested_absmax,
        nested_code,
        offset,
    )
    return out


embedding_4bit = define(
    "embedding_4bit(Tensor indices, Tensor codes, Tensor scales, str format, int block_size, SymInt n,"
    " SymInt k, ScalarType dtype, Tensor? zeros=None, Tensor? nested_absmax=None, Tensor?"
    " nested_code=None, Tensor? offset=None) -> Tensor",
    _kernel,
    _output,
    leading_dimensions=True,
)
