"""Linear quantization r = s (q - z) with a scale and a zero point per group of a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qbits import ops
from qbits.ops._library import as_block_size, check_is_tensor


def quantize_affine(
    x: Tensor, format: str = "int4", group_size: int = 64, scale_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes groups of `group_size` elements of each row to 0 .. 2^bits - 1 (arXiv 1712.05877).

    Each group's range is widened to hold 0, so 0.0 comes back exactly.

    Args:
        x: float32, bfloat16 or float16 [..., cols].
        format: "int4" or "int8_affine".
        group_size: 16 to 4096, or 0 for whole rows.
        scale_dtype: of the scales and zeros.

    Returns:
        codes, uint8: [(n + 1) // 2] with the first element of a pair in the high nibble (int4), or [n];
        scales and zeros, [rows, groups].
    """
    group_size = as_block_size("quantize_affine", group_size)
    check_is_tensor("quantize_affine", "x", x)
    return ops.quantize_affine(x.detach(), format, group_size, scale_dtype)


def dequantize_affine(
    codes: Tensor,
    scales: Tensor,
    zeros: Tensor,
    format: str,
    group_size: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(code - zero) * scale in float32, rounded once to `dtype`. The tensors are those of quantize_affine.

    Returns:
        `shape`, float32, bfloat16 or float16.
    """
    group_size = as_block_size("dequantize_affine", group_size)
    for name, tensor in (("codes", codes), ("scales", scales), ("zeros", zeros)):
        check_is_tensor("dequantize_affine", name, tensor)
    return ops.dequantize_affine(codes, scales, zeros, format, group_size, list(shape), dtype)
