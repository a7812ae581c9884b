"""Rows in 8 bits with one scale each, the columns of outliers kept out: the first step of LLM.int8()."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qbits import _C
from qbits.ops._library import (
    FLOATS,
    check,
    check_int8_sizes,
    check_tensor,
    check_threshold,
    define,
    refuse_grad,
)

OP = "quantize_int8_rowwise"


def _outputs(x: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_threshold(OP, threshold)
    check_tensor(OP, "x", x, FLOATS)
    check(x.dim() > 0, OP, "x", "0 dimensions", "at least 1")
    check_int8_sizes(OP, math.prod(x.shape[:-1]), x.shape[-1])
    refuse_grad(OP, "x.detach()", x)
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(x.shape[:-1], dtype=torch.float32),
        x.new_empty(x.shape[-1] if threshold > 0 else 0, dtype=torch.int32),
        x.new_zeros(1, dtype=torch.int32),
    )


def _kernel(x: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    codes, scales, columns, count = _outputs(x, threshold)
    outliers = (columns, count) if threshold > 0 else ()
    _C.quantize_int8_rowwise(x.contiguous(), threshold, codes, scales, *outliers)
    return codes, scales, columns, count


quantize_int8_rowwise = define(
    "quantize_int8_rowwise(Tensor x, float threshold=0.0) -> (Tensor codes, Tensor scales, Tensor"
    " outlier_columns, Tensor outlier_count)",
    _kernel,
    _outputs,
)
