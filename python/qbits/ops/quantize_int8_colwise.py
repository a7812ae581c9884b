"""Columns in 8 bits with one scale each, outliers kept out: a half of bitsandbytes' int8_double_quant."""

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

OP = "quantize_int8_colwise"


def _outputs(x: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    check_threshold(OP, threshold)
    check_tensor(OP, "x", x, FLOATS)
    check(x.dim() > 0, OP, "x", "0 dimensions", "at least 1")
    check_int8_sizes(OP, math.prod(x.shape[:-1]), x.shape[-1])
    refuse_grad(OP, "x.detach()", x)
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[-1], dtype=torch.float32)


def _kernel(x: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    codes, scales = _outputs(x, threshold)
    _C.quantize_int8_colwise(x.contiguous(), threshold, codes, scales)
    return codes, scales


quantize_int8_colwise = define(
    "quantize_int8_colwise(Tensor x, float threshold=0.0) -> (Tensor codes, Tensor scales)", _kernel, _outputs
)
