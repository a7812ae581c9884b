"""Double quantization: the scales of a 4-bit tensor in 8 bits, around their mean."""

from __future__ import annotations

import torch
from torch import Tensor

from qbits import _C
from qbits.formats import NESTED_BLOCK_SIZE
from qbits.ops._library import check_tensor, define, refuse_grad

OP = "quantize_absmax"


def _outputs(absmax: Tensor, nested_code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    check_tensor(OP, "absmax", absmax, (torch.float32,))
    check_tensor(OP, "nested_code", nested_code, (torch.float32,), absmax.device, 256)
    refuse_grad(OP, "absmax.detach()", absmax, nested_code)
    nested_blocks = (absmax.numel() + NESTED_BLOCK_SIZE - 1) // NESTED_BLOCK_SIZE
    values = absmax.new_empty(absmax.shape, dtype=torch.uint8)
    # No scales have no mean, and libqbits writes nothing: the offset of an empty tensor is 0.
    return values, absmax.new_empty(nested_blocks), absmax.new_zeros(())


def _kernel(absmax: Tensor, nested_code: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _outputs(absmax, nested_code)
    _C.quantize_absmax(absmax.contiguous(), nested_code.contiguous(), *outputs)
    return outputs


quantize_absmax = define(
    "quantize_absmax(Tensor absmax, Tensor nested_code) -> (Tensor values, Tensor nested_absmax, Tensor"
    " offset)",
    _kernel,
    _outputs,
)
