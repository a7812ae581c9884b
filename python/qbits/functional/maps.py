"""The 256-entry maps of 8-bit block-wise quantization and quantiles, as bitsandbytes builds them."""

from __future__ import annotations

import torch
from torch import Tensor

from qbits import _C, ops
from qbits.formats import FORMATS
from qbits.functional.quantize_4bit import written
from qbits.ops._library import check_is_tensor

# 4-bit AbnormalFloat for blocks of 64: Yoshida, "NF4 Isn't Information Theoretically Optimal (and that's
# Good)", arXiv 2306.06965, listed from 1 down as in bitsandbytes.
_AF4 = (
    *(1.0, 0.72424863, 0.55496234, 0.42563882, 0.31675666, 0.21961274, 0.12934483, 0.04273164),
    *(0.0, -0.04934812, -0.14982478, -0.25607552, -0.3736951, -0.51243739, -0.69441008, -1.0),
)


def get_4bit_type(typename: str, device: torch.device | str | None = None, blocksize: int = 64) -> Tensor:
    """The 16 values of a 4-bit data type, indexed by code: float32[16] in [-1, 1].

    Args:
        typename: "nf4", "fp4", "int4" (symmetric, two codes of zero) or "af4" (blocks of 64 only).
        device: by default the current CUDA device where there is one, else the CPU.
        blocksize: only "af4" depends on it.

    Raises:
        NotImplementedError: an unknown type, or af4 with another block size.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if typename in ("nf4", "fp4"):
        values = FORMATS[typename].codebook
    elif typename == "int4":
        values = tuple(v / 7 for v in (*range(7, 0, -1), 0, 0, *range(-1, -8, -1)))
    elif typename == "af4" and blocksize == 64:
        values = _AF4
    else:
        raise NotImplementedError(
            f"[get_4bit_type] type: got {typename!r} with blocksize {blocksize}, "
            "want nf4, fp4, int4, or af4 with blocksize 64"
        )
    return torch.tensor(values, dtype=torch.float32, device=device)


def create_dynamic_map(signed: bool = True, max_exponent_bits: int = 7, total_bits: int = 8) -> Tensor:
    """Exponents of ten with a linear fraction (arXiv 1511.04561). float32[256], ascending."""
    return torch.tensor(_C.create_dynamic_map(signed, max_exponent_bits, total_bits), dtype=torch.float32)


def create_linear_map(signed: bool = True, total_bits: int = 8, add_zero: bool = True) -> Tensor:
    """Evenly spaced values in [-1, 1] or [0, 1], zeros in the middle as padding. float32[256], ascending."""
    return torch.tensor(_C.create_linear_map(signed, total_bits, add_zero), dtype=torch.float32)


def create_fp8_map(
    signed: bool = True, exponent_bits: int = 5, precision_bits: int = 2, total_bits: int = 8
) -> Tensor:
    """Every value of a small floating-point type, divided by the largest. float32[256], ascending."""
    values = _C.create_fp8_map(signed, exponent_bits, precision_bits, total_bits)
    return torch.tensor(values, dtype=torch.float32)


def create_normal_map(offset: float = 0.9677083, use_extra_value: bool = True) -> Tensor:
    """Quantiles of the normal distribution, the source of nf4 (arXiv 2305.14314). float32[256], ascending."""
    return torch.tensor(_C.create_normal_map(offset, use_extra_value), dtype=torch.float32)


def estimate_quantiles(
    A: Tensor, out: Tensor | None = None, offset: float | None = None, num_quantiles: int = 256
) -> Tensor:
    """Quantiles of `A`, exact to half a percent of rank for any number of elements.

    Args:
        A: float32, bfloat16 or float16, at least one element. NaN elements are ignored.
        out: float32 [num_quantiles] that receives the result, or None.
        offset: rank of the first quantile, in [0, 0.5); the last has rank 1 - offset. By default
            1 / (2 num_quantiles), so that each quantile stands for an equal share of `A`.
        num_quantiles: 1 to 65536.

    Returns:
        float32 [num_quantiles], ascending.
    """
    check_is_tensor("estimate_quantiles", "A", A)
    if offset is None:
        offset = 1 / (2 * num_quantiles) if num_quantiles > 0 else 0.0
    quantiles = ops.estimate_quantiles(A.detach(), num_quantiles, offset)
    return quantiles if out is None else written("estimate_quantiles", "out", out, quantiles)


def create_quantile_map(A: Tensor, total_bits: int = 8) -> Tensor:
    """A map made of the quantiles of `A` and 0, divided by the largest magnitude.

    Args:
        A: float32, bfloat16 or float16, at least one element.
        total_bits: 1 to 8: 2^total_bits values, padded with zeros.

    Returns:
        float32[256], ascending, on A's device.
    """
    if not 1 <= total_bits <= 8:
        raise ValueError(f"[create_quantile_map] total_bits: got {total_bits}, want 1 to 8")
    quantiles = estimate_quantiles(A, num_quantiles=2**total_bits - 1)
    values = torch.cat([quantiles, quantiles.new_zeros(256 - quantiles.numel())]).sort().values
    return values / values.abs().max()
