"""Block-wise quantization to 8 bits with any ascending code of 256 values (arXiv 2110.02861)."""

from __future__ import annotations

import torch
from torch import Tensor

from qbits import _C
from qbits.formats import FORMATS
from qbits.ops._library import FLOATS, check_block_size, check_tensor, define, refuse_grad

OP = "quantize_blockwise"


def _outputs(x: Tensor, code: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    row = FORMATS["quantile"]
    check_block_size(OP, row, block_size)
    check_tensor(OP, "x", x, FLOATS)
    check_tensor(OP, "code", code, (torch.float32,), x.device, 256)
    refuse_grad(OP, "x.detach()", x, code)
    codes = x.new_empty(x.shape, dtype=torch.uint8)
    return codes, x.new_empty(row.num_scales(1, x.numel(), block_size), dtype=torch.float32)


def _kernel(x: Tensor, code: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    codes, absmax = _outputs(x, code, block_size)
    _C.quantize_blockwise(x.contiguous(), code.contiguous(), block_size, codes, absmax)
    return codes, absmax


quantize_blockwise = define(
    "quantize_blockwise(Tensor x, Tensor code, int block_size) -> (Tensor codes, Tensor absmax)",
    _kernel,
    _outputs,
)
