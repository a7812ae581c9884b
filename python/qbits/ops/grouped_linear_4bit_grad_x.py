"""The gradient of grouped_linear_4bit for x: grad[t] W[e] for the expert e of each row t."""

from __future__ import annotations

from torch import Tensor

from qbits import _C
from qbits.ops._library import FLOATS, check, check_tensor, check_weight_4bit, define, describe, refuse_grad
from qbits.ops.grouped_linear_4bit import ADVICE, check_offsets

OP = "grouped_linear_4bit_grad_x"


def _output(
    grad: Tensor,
    offsets: Tensor,
    codes: Tensor,
    scales: Tensor,
    format: str,
    block_size: int,
    n: int,
    k: int,
    zeros: Tensor | None = None,
    nested_absmax: Tensor | None = None,
    nested_code: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    nested = (nested_absmax, nested_code, offset)
    experts = check_offsets(OP, offsets, grad.device)
    check(n >= 0, OP, "n", n, "at least 0")
    check_weight_4bit(OP, grad.device, codes, scales, format, block_size, experts * n, k, zeros, *nested)
    check_tensor(OP, "grad", grad, FLOATS)
    check(grad.dim() == 2, OP, "grad", describe(grad), "2 dimensions")
    check(grad.shape[-1] == n, OP, "grad", describe(grad), f"{n} columns")
    refuse_grad(OP, ADVICE, grad, scales, zeros, *nested)
    return grad.new_empty(grad.shape[0], k)


def _kernel(
    grad: Tensor,
    offsets: Tensor,
    codes: Tensor,
    scales: Tensor,
    format: str,
    block_size: int,
    n: int,
    k: int,
    zeros: Tensor | None = None,
    nested_absmax: Tensor | None = None,
    nested_code: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    nested = (nested_absmax, nested_code, offset)
    grad = grad.contiguous()
    out = _output(grad, offsets, codes, scales, format, block_size, n, k, zeros, *nested)
    _C.grouped_linear_4bit_grad_x(grad, offsets, codes, scales, format, block_size, n, k, out, zeros, *nested)
    return out


grouped_linear_4bit_grad_x = define(
    f"{OP}(Tensor grad, Tensor offsets, Tensor codes, Tensor scales, str format, int block_size, SymInt n,"
    " SymInt k, Tensor? zeros=None, Tensor? nested_absmax=None, Tensor? nested_code=None,"
    " Tensor? offset=None) -> Tensor",
    _kernel,
    _output,
)
