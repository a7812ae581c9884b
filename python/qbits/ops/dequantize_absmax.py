"""The float32 scales of a double-quantized 4-bit tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from qbits import _C
from qbits.ops._library import check_absmax, define, refuse_grad

OP = "dequantize_absmax"


def _output(values: Tensor, nested_absmax: Tensor, nested_code: Tensor, offset: Tensor) -> Tensor:
    check_absmax(OP, values, values.numel(), values.device, nested_absmax, nested_code, offset)
    refuse_grad(OP, "nested_absmax.detach()", nested_absmax, nested_code, offset)
    return values.new_empty(values.shape, dtype=torch.float32)


def _kernel(values: Tensor, nested_absmax: Tensor, nested_code: Tensor, offset: Tensor) -> Tensor:
    out = _output(values, nested_absmax, nested_code, offset)
    _C.dequantize_absmax(
        values.contiguous(), nested_absmax.contiguous(), nested_code.contiguous(), offset.contiguous(), out
    )
    return out


dequantize_absmax = define(
    "dequantize_absmax(Tensor values, Tensor nested_absmax, Tensor nested_code, Tensor offset) -> Tensor",
    _kernel,
    _output,
)
