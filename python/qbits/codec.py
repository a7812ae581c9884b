"""From a dense tensor to the tensors of a format and back: one pair of functions over the format table."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

from qbits import _C, ops
from qbits.formats import FORMATS, Format
from qbits.ops._library import describe

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes of weights and activations."""

TENSORS = ("codes", "absmax", "scales", "zeros", "nested_absmax", "nested_code", "offset")
"""Every tensor a quantized weight may consist of; the format's row and double quantization say which."""

DEFAULT_BLOCK_SIZE = 64

_DYNAMIC = "the map of double quantization"
_DYNAMIC_MAP = tuple(_C.create_dynamic_map(True, 7, 8))


def check_format(op: str, format: str, in_layers: bool = False) -> Format:
    """The row of the format table called `format`, one that layers can hold if asked for.

    Raises ValueError listing those that fit.
    """

    def fits(row: Format) -> bool:
        return (row.coding != "codebook" or bool(row.codebook)) and (row.in_layers or not in_layers)

    row = FORMATS.get(format) if isinstance(format, str) else None
    if row is None or not fits(row):
        known = ", ".join(name for name, r in FORMATS.items() if fits(r))
        raise ValueError(f"[{op}] format: got {format!r}, want one of {known}")
    return row


def check_options(
    op: str, row: Format, block_size: int | None, double_quant: bool, scale_dtype: torch.dtype | None
) -> tuple[int, torch.dtype]:
    """The block size and scale dtype to use, defaults filled in. Raises ValueError or TypeError."""
    default = DEFAULT_BLOCK_SIZE if row.block_sizes else 0
    size = default if block_size is None else block_size
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"[{op}] block size: got {size!r}, want an int")
    if size not in row.block_sizes and not (row.whole_rows and size == 0):
        raise ValueError(f"[{op}] block size: got {size}, want {row.describe_block_sizes()}")
    if not isinstance(double_quant, bool):
        raise TypeError(f"[{op}] double quantization: got {double_quant!r}, want True or False")
    if double_quant and not (row.bits == 4 and row.coding == "codebook"):
        raise ValueError(f"[{op}] double quantization: got format {row.name}, want a 4-bit codebook format")
    dtype = row.scale_dtypes[0] if scale_dtype is None else scale_dtype
    if dtype not in row.scale_dtypes:
        want = ", ".join(map(str, row.scale_dtypes))
        raise TypeError(f"[{op}] scale dtype: got {dtype!r}, want {want}")
    return size, dtype


def dtype_name(dtype: torch.dtype) -> str:
    """ "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


@functools.lru_cache(maxsize=64)
def _constant(name: str, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # usable outside of an inference mode that happens to be active
        return torch.tensor(_values(name), dtype=torch.float32, device=device)


def _values(name: str) -> Sequence[float]:
    return FORMATS[name].codebook if name in FORMATS else _DYNAMIC_MAP


def codebook(format: str, device: torch.device) -> Tensor:
    """The values of the codes of a codebook format, float32. Shared between callers: do not write to it."""
    # A trace makes its own, which must not be kept. Dynamo knows only the first question.
    if torch.compiler.is_compiling() or detect_fake_mode() is not None:
        return torch.tensor(_values(format), dtype=torch.float32, device=device)
    return _constant(format, device)


def dynamic_map(device: torch.device) -> Tensor:
    """The signed 8-bit dynamic map, float32[256]: the code of double quantization. Do not write to it."""
    return codebook(_DYNAMIC, device)


def encode(
    x: Tensor, format: str, block_size: int, double_quant: bool, scale_dtype: torch.dtype
) -> dict[str, Tensor]:
    """Quantizes `x`, float [rows, cols], into the tensors of `format`.

    Codes are [rows, bytes of a row] where rows fall on bytes, else 1-D. A NaN or an infinity makes its
    block's scale NaN.
    """
    row = FORMATS[format]
    rows, cols = x.shape
    x = x.detach()
    tensors: dict[str, Tensor] = {}
    if row.coding == "affine":
        tensors["codes"], tensors["scales"], tensors["zeros"] = ops.quantize_affine(
            x, format, block_size, scale_dtype
        )
    elif row.coding == "symmetric":
        tensors["codes"], tensors["scales"], *_ = ops.quantize_int8_rowwise(x)
    elif row.bits == 4:
        codes, absmax = ops.quantize_4bit(x, format, block_size)
        tensors = {"codes": codes, "absmax": absmax}
        if double_quant:
            code = dynamic_map(x.device).clone()
            tensors["absmax"], tensors["nested_absmax"], tensors["offset"] = ops.quantize_absmax(absmax, code)
            tensors["nested_code"] = code
    else:
        codes, absmax = ops.quantize_blockwise(x, codebook(format, x.device), block_size)
        tensors = {"codes": codes, "absmax": absmax}
    tensors["codes"] = shape_codes(tensors["codes"], row, rows, cols)
    return tensors


def shape_codes(codes: Tensor, row: Format, rows: int, cols: int) -> Tensor:
    """View of `codes` as [rows, bytes of a row], or 1-D where rows do not fall on bytes."""
    if row.bits == 8:
        return codes.reshape(rows, cols)
    return codes.reshape(rows, cols // 2) if cols % 2 == 0 else codes.reshape(-1)


def decode(
    tensors: Mapping[str, Tensor | None],
    format: str,
    block_size: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """The dense [rows, cols] tensor that `encode` made `tensors` from, in float32, bfloat16 or float16."""
    row = FORMATS[format]
    codes = tensors["codes"]
    if row.coding == "affine":
        return ops.dequantize_affine(
            codes, tensors["scales"], tensors["zeros"], format, block_size, shape, dtype
        )
    if row.coding == "symmetric":
        assert codes is not None
        if codes.shape != shape:
            raise ValueError(f"[dequantize_int8_rowwise] codes: got {describe(codes)}, want {list(shape)}")
        return ops.dequantize_int8_rowwise(codes, tensors["scales"], dtype)
    if row.bits == 4:
        nested = (tensors.get("nested_absmax"), tensors.get("nested_code"), tensors.get("offset"))
        return ops.dequantize_4bit(codes, tensors["absmax"], format, block_size, shape, dtype, *nested)
    assert codes is not None
    code = codebook(format, codes.device)
    return ops.dequantize_blockwise(codes, tensors["absmax"], code, block_size, dtype).reshape(shape)


def first_bad_index(x: Tensor, tensors: Mapping[str, Tensor | None]) -> tuple[int, ...] | None:
    """Index of the first NaN or infinity of `x`, found through the scales `encode` made of it.

    None if there is none. Reads the scales, much smaller than `x`, and synchronises once.
    """
    for name in ("offset", "scales", "absmax"):
        scales = tensors.get(name)
        if scales is not None and scales.is_floating_point():
            break
    else:
        return None
    if scales.is_meta or not bool(scales.isnan().any()):
        return None
    flat = int((~torch.isfinite(x)).flatten().to(torch.uint8).argmax())
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), x.shape))
