"""Quantization to a 4-bit codebook format, block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from qbits import _C
from qbits.ops._library import FLOATS, check_block_size, check_format, check_tensor, define, refuse_grad

OP = "quantize_4bit"


def _outputs(x: Tensor, format: str, block_size: int) -> tuple[Tensor, Tensor]:
    row = check_format(OP, format, coding="codebook", bits=4)
    check_block_size(OP, row, block_size)
    check_tensor(OP, "x", x, FLOATS)
    refuse_grad(OP, "x.detach()", x)
    n = x.numel()
    codes = x.new_empty(row.codes_size(n), dtype=torch.uint8)
    return codes, x.new_empty(row.num_scales(1, n, block_size), dtype=torch.float32)


def _kernel(x: Tensor, format: str, block_size: int) -> tuple[Tensor, Tensor]:
    codes, absmax = _outputs(x, format, block_size)
    _C.quantize_4bit(x.contiguous(), format, block_size, codes, absmax)
    return codes, absmax


quantize_4bit = define(
    "quantize_4bit(Tensor x, str format, int block_size) -> (Tensor codes, Tensor absmax)", _kernel, _outputs
)
