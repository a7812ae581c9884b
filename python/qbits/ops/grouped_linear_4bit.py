"""The products of a mixture of experts with 4-bit weights: x[t] W[e]^T + bias[e], e the expert of row t."""

from __future__ import annotations

import torch
from torch import Tensor

from qbits import _C
from qbits.ops._library import FLOATS, check, check_tensor, check_weight_4bit, define, describe, refuse_grad

OP = "grouped_linear_4bit"
ADVICE = "qbits.functional.grouped_linear_4bit"


def check_offsets(op: str, offsets: Tensor, device: torch.device) -> int:
    """The number of experts, by the number of offsets. Their values are libqbits' to check."""
    check_tensor(op, "offsets", offsets, (torch.int32,), device)
    check(offsets.dim() == 1, op, "offsets", describe(offsets), "1 dimension")
    check(offsets.shape[0] >= 2, op, "offsets", describe(offsets), "at least 2 elements")
    return offsets.shape[0] - 1


def _output(
    x: Tensor,
    offsets: Tensor,
    codes: Tensor,
    scales: Tensor,
    format: str,
    block_size: int,
    n: int,
    k: int,
    bias: Tensor | None = None,
    zeros: Tensor | None = None,
    nested_absmax: Tensor | None = None,
    nested_code: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    nested = (nested_absmax, nested_code, offset)
    experts = check_offsets(OP, offsets, x.device)
    check(n >= 0, OP, "n", n, "at least 0")
    check_weight_4bit(OP, x.device, codes, scales, format, block_size, experts * n, k, zeros, *nested)
    check_tensor(OP, "x", x, FLOATS)
    check(x.dim() == 2, OP, "x", describe(x), "2 dimensions")
    check(x.shape[-1] == k, OP, "x", describe(x), f"{k} columns")
    if bias is not None:
        check_tensor(OP, "bias", bias, (x.dtype,), x.device, experts * n)
    refuse_grad(OP, ADVICE, x, bias, scales, zeros, *nested)
    return x.new_empty(x.shape[0], n)


def _kernel(
    x: Tensor,
    offsets: Tensor,
    codes: Tensor,
    scales: Tensor,
    format: str,
    block_size: int,
    n: int,
    k: int,
    bias: Tensor | None = None,
    zeros: Tensor | None = None,
    nested_absmax: Tensor | None = None,
    nested_code: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    nested = (nested_absmax, nested_code, offset)
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    out = _output(x, offsets, codes, scales, format, block_size, n, k, bias, zeros, *nested)
    _C.grouped_linear_4bit(x, offsets, codes, scales, bias, format, block_size, n, k, out, zeros, *nested)
    return out


grouped_linear_4bit = define(
    f"{OP}(Tensor x, Tensor offsets, Tensor codes, Tensor scales, str format, int block_size, SymInt n,"
    " SymInt k, Tensor? bias=None, Tensor? zeros=None, Tensor? nested_absmax=None,"
    " Tensor? nested_code=None, Tensor? offset=None) -> Tensor",
    _kernel,
    _output,
)
