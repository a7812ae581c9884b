"""4-bit quantization of tensors, with the signatures of bitsandbytes.functional."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qbits import ops
from qbits.codec import codebook, dynamic_map
from qbits.formats import NESTED_BLOCK_SIZE
from qbits.functional.quant_state import QuantState
from qbits.ops._library import as_block_size, check_dtype, check_is_tensor, describe

FORMATS_4BIT = ("nf4", "fp4")
"""Those whose weights a QuantState describes."""


def quantize_4bit(
    A: Tensor,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    compress_statistics: bool = False,
    quant_type: str = "fp4",
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """Quantizes blocks of the flattened `A` to 4 bits (QLoRA, arXiv 2305.14314).

    Args:
        A: float32, bfloat16 or float16, any shape.
        absmax: a tensor that receives the scales (the quantized ones if `compress_statistics`), or None.
        out: a tensor that receives the codes, or None.
        blocksize: a power of two from 16 to 4096; 64 by default.
        compress_statistics: quantize the scales too, to 8 bits in blocks of 256.
        quant_type: "nf4" or "fp4".
        quant_storage: dtype the bytes of codes are viewed as. The last element is filled up with zero
            bytes where their number is not a multiple of its size.

    Returns:
        codes, [ceil(bytes / itemsize), 1], two a byte, the first element of a pair in the high nibble;
        and the state dequantize_4bit needs.
    """
    if quant_type not in FORMATS_4BIT:
        raise ValueError(f"[quantize_4bit] quant_type: got {quant_type!r}, want {' or '.join(FORMATS_4BIT)}")
    check_is_tensor("quantize_4bit", "A", A)
    if not isinstance(quant_storage, torch.dtype):
        raise TypeError(f"[quantize_4bit] quant_storage: got {quant_storage!r}, want a torch.dtype")
    blocksize = 64 if blocksize is None else as_block_size("quantize_4bit", blocksize)
    codes, scales = ops.quantize_4bit(A.detach(), quant_type, blocksize)
    itemsize = quant_storage.itemsize
    codes = torch.nn.functional.pad(codes, (0, -codes.numel() % itemsize)).view(quant_storage).unsqueeze(1)
    state = QuantState(
        absmax=scales,
        shape=A.shape,
        code=codebook(quant_type, A.device).clone(),
        blocksize=blocksize,
        quant_type=quant_type,
        dtype=A.dtype,
    )
    if compress_statistics:
        code = dynamic_map(A.device).clone()
        state.absmax, nested_absmax, state.offset = ops.quantize_absmax(scales, code)
        state.state2 = QuantState(
            absmax=nested_absmax, code=code, blocksize=NESTED_BLOCK_SIZE, dtype=torch.float32
        )
    if absmax is not None:
        state.absmax = written("quantize_4bit", "absmax", absmax, state.absmax)
    return codes if out is None else written("quantize_4bit", "out", out, codes), state


def dequantize_4bit(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    quant_type: str = "fp4",
) -> Tensor:
    """The dense tensor of `A`, the codes quantize_4bit returned, in any shape and storage dtype.

    Unlike bitsandbytes, the result always has the quantized tensor's shape: it is not transposed when
    `A.shape[0]` is 1.

    Args:
        A: the codes.
        quant_state: their state; or `absmax`, float32, and `out` say what it would.
        out: a tensor that receives the result, or None.
        blocksize, quant_type: used only without `quant_state`.

    Returns:
        `quant_state.shape` in `quant_state.dtype`; or `out`.

    Raises:
        ValueError: a format, block size, shape or number of elements that does not fit.
    """
    check_is_tensor("dequantize_4bit", "A", A)
    if quant_state is None:
        if absmax is None or out is None:
            raise ValueError("[dequantize_4bit] quant_state: got None, want one, or both absmax and out")
        check_is_tensor("dequantize_4bit", "absmax", absmax)
        check_is_tensor("dequantize_4bit", "out", out)
        quant_state = QuantState(
            absmax=absmax, shape=out.shape, blocksize=blocksize or 64, quant_type=quant_type, dtype=out.dtype
        )
    shape, dtype = quant_state.shape, quant_state.dtype
    if shape is None or dtype is None or quant_state.blocksize is None or quant_state.quant_type is None:
        raise ValueError("[dequantize_4bit] quant_state: got one without shape, dtype, blocksize, quant_type")
    dense = ops.dequantize_4bit(
        packed_bytes(A, math.prod(shape)),
        quant_state.absmax.reshape(-1),
        quant_state.quant_type,
        as_block_size("dequantize_4bit", quant_state.blocksize),
        list(shape),
        dtype,
        *nested_tensors(quant_state),
    )
    return dense if out is None else written("dequantize_4bit", "out", out, dense)


def packed_bytes(codes: Tensor, numel: int, op: str = "dequantize_4bit") -> Tensor:
    """The uint8 [(numel + 1) // 2] codes in `codes`, whatever its storage dtype and shape.

    Raises ValueError for more bytes than fill up the last element: they are some other tensor's.
    """
    flat = codes.detach().contiguous().reshape(-1).view(torch.uint8)
    size = (numel + 1) // 2
    if flat.numel() >= size + codes.element_size():
        got = f"{describe(codes)}, {flat.numel()} bytes"
        raise ValueError(f"[{op}] codes: got {got}, want {size} bytes")
    return flat[:size]


def written(op: str, what: str, out: Tensor, result: Tensor) -> Tensor:
    """`out`, into which `result` is written. Raises unless it has the same dtype, shape and device."""
    check_is_tensor(op, what, out)
    check_dtype(op, what, out.dtype, (result.dtype,))
    if out.shape != result.shape or out.device != result.device:
        raise ValueError(f"[{op}] {what}: got {describe(out)}, want {describe(result)}")
    return out.copy_(result)


def nested_tensors(state: QuantState) -> tuple[Tensor, Tensor, Tensor] | tuple[()]:
    """(nested_absmax, nested_code, offset) of a nested state, () of a plain one."""
    if state.state2 is None:
        return ()
    if state.state2.blocksize != NESTED_BLOCK_SIZE:
        got = state.state2.blocksize
        raise ValueError(f"[quant_state] nested blocksize: got {got}, want {NESTED_BLOCK_SIZE}")
    if state.state2.code is None or state.offset is None:
        raise ValueError("[quant_state] nested state: got one without code or offset")
    return state.state2.absmax, state.state2.code, state.offset


def quantize_nf4(
    A: Tensor,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    compress_statistics: bool = False,
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """`quantize_4bit` to nf4."""
    return quantize_4bit(A, absmax, out, blocksize, compress_statistics, "nf4", quant_storage)


def quantize_fp4(
    A: Tensor,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
    compress_statistics: bool = False,
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """`quantize_4bit` to fp4."""
    return quantize_4bit(A, absmax, out, blocksize, compress_statistics, "fp4", quant_storage)


def dequantize_nf4(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
) -> Tensor:
    """`dequantize_4bit` from nf4."""
    return dequantize_4bit(A, quant_state, absmax, out, blocksize, "nf4")


def dequantize_fp4(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    blocksize: int | None = None,
) -> Tensor:
    """`dequantize_4bit` from fp4."""
    return dequantize_4bit(A, quant_state, absmax, out, blocksize, "fp4")
