"""The floats of a block-wise 8-bit tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from qbits import _C
from qbits.formats import FORMATS
from qbits.ops._library import FLOATS, check_block_size, check_dtype, check_tensor, define, refuse_grad

OP = "dequantize_blockwise"


def _output(codes: Tensor, absmax: Tensor, code: Tensor, block_size: int, dtype: torch.dtype) -> Tensor:
    row = FORMATS["quantile"]
    check_block_size(OP, row, block_size)
    check_dtype(OP, "dtype", dtype, FLOATS)
    check_tensor(OP, "codes", codes, (torch.uint8,))
    blocks = row.num_scales(1, codes.numel(), block_size)
    check_tensor(OP, "absmax", absmax, (torch.float32,), codes.device, blocks)
    check_tensor(OP, "code", code, (torch.float32,), codes.device, 256)
    refuse_grad(OP, "absmax.detach()", absmax, code)
    return codes.new_empty(codes.shape, dtype=dtype)


def _kernel(codes: Tensor, absmax: Tensor, code: Tensor, block_size: int, dtype: torch.dtype) -> Tensor:
    out = _output(codes, absmax, code, block_size, dtype)
    _C.dequantize_blockwise(codes.contiguous(), absmax.contiguous(), code.contiguous(), block_size, out)
    return out


dequantize_blockwise = define(
    "dequantize_blockwise(Tensor codes, Tensor absmax, Tensor code, int block_size, ScalarType dtype) ->"
    " Tensor",
    _kernel,
    _output,
)
