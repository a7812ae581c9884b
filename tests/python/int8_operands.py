"""Operands of LLM.int8() in one size, for the tests of its functions."""

import torch

import qbits.functional as F

N, K = 24, 40


def randn(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def make(device="cpu", dtype=torch.float32):
    """Codes, scales, bias, and the dense weight they stand for."""
    rows = F.quantize_int8_rowwise(randn(N, K, seed=1))
    codes, scales = rows.codes.to(device), rows.scales.to(device)
    return codes, scales, randn(N, seed=2).to(device, dtype), F.dequantize_int8_rowwise(codes, scales, dtype)


def outliers(x):
    """x with a column beyond 6."""
    x = x.clone()
    x[..., 3] = 20.0
    return x
