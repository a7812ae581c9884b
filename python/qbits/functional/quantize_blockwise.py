"""8-bit block-wise quantization of tensors, with the signatures of bitsandbytes.functional."""

from __future__ import annotations

import torch
from torch import Tensor

from qbits import ops
from qbits.codec import dynamic_map
from qbits.functional.quant_state import QuantState
from qbits.functional.quantize_4bit import written
from qbits.ops._library import as_block_size, check_is_tensor


def quantize_blockwise(
    A: Tensor,
    code: Tensor | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int = 4096,
    nested: bool = False,
) -> tuple[Tensor, QuantState]:
    """Rounds each element over its block's absmax to the nearest of 256 values (arXiv 2110.02861).

    Args:
        A: float32, bfloat16 or float16, any shape.
        code: float32[256], ascending; by default the signed dynamic map.
        absmax: a tensor that receives the scales (the quantized ones if `nested`), or None.
        out: a tensor that receives the codes, or None.
        blocksize: a power of two from 16 to 4096.
        nested: quantize absmax minus its mean too, with the signed dynamic map and the same block size.

    Returns:
        codes, uint8 shaped like `A`, and the state dequantize_blockwise needs.
    """
    check_is_tensor("quantize_blockwise", "A", A)
    if code is None:
        code = dynamic_map(A.device)
    check_is_tensor("quantize_blockwise", "code", code)
    code = code.to(A.device)
    blocksize = as_block_size("quantize_blockwise", blocksize)
    codes, scales = ops.quantize_blockwise(A.detach(), code, blocksize)
    state = QuantState(absmax=scales, code=code.clone(), blocksize=blocksize, dtype=A.dtype)
    if nested:
        # The offset of double quantization is the mean summed in a fixed order, the same on every device.
        offset = ops.quantize_absmax(scales, dynamic_map(A.device))[2]
        state.absmax, state.state2 = quantize_blockwise(scales - offset, blocksize=blocksize)
        state.offset = offset
    if absmax is not None:
        state.absmax = written("quantize_blockwise", "absmax", absmax, state.absmax)
    return codes if out is None else written("quantize_blockwise", "out", out, codes), state


def dequantize_blockwise(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    code: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int = 4096,
    nested: bool = False,
) -> Tensor:
    """code[A] * absmax of the block, in float32, rounded once.

    Args:
        A: uint8 codes, any shape.
        quant_state: their state; or `absmax`, float32, with `code` (by default the signed dynamic map) and
            `blocksize`, for a float32 result.
        out: a tensor that receives the result, or None.
        nested: accepted for compatibility; the state says it.

    Returns:
        shaped like `A`, in `quant_state.dtype`; or `out`.
    """
    check_is_tensor("dequantize_blockwise", "A", A)
    if quant_state is None:
        if absmax is None:
            raise ValueError("[dequantize_blockwise] quant_state: got None, want one, or absmax")
        check_is_tensor("dequantize_blockwise", "absmax", absmax)
        if code is not None:
            check_is_tensor("dequantize_blockwise", "code", code)
        quant_state = QuantState(absmax=absmax, code=code, blocksize=blocksize, dtype=torch.float32)
    scales = quant_state.absmax
    if quant_state.state2 is not None:
        if quant_state.offset is None:
            raise ValueError("[dequantize_blockwise] quant_state: got a nested one without offset")
        scales = dequantize_blockwise(scales, quant_state.state2).float() + quant_state.offset
    values = dynamic_map(A.device) if quant_state.code is None else quant_state.code.to(A.device)
    blocksize = as_block_size("dequantize_blockwise", quant_state.blocksize or blocksize)
    dense = ops.dequantize_blockwise(A, scales, values, blocksize, quant_state.dtype or torch.float32)
    return dense if out is None else written("dequantize_blockwise", "out", out, dense)
