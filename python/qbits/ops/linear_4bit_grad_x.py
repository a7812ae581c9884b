"""The gradient of linear_4bit for x: grad W."""

from __future__ import annotations

from typing import Any

from torch import Tensor, is_grad_enabled

from qbits import _C
from qbits.ops._library import FLOATS, check, check_tensor, check_weight_4bit, define, describe, refuse_grad

OP = "linear_4bit_grad_x"


def _output(
    grad: Tensor,
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
    check_weight_4bit(
        OP, grad.device, codes, scales, format, block_size, n, k, zeros, nested_absmax, nested_code, offset
    )
    check_tensor(OP, "grad", grad, FLOATS)
    check(grad.dim() > 0, OP, "grad", "0 dimensions", "at least 1")
    check(grad.shape[-1] == n, OP, "grad", describe(grad), f"{n} columns")
    refuse_grad(OP, "qbits.functional.linear_4bit", grad, scales, zeros, nested_absmax, nested_code, offset)
    return grad.new_empty(*grad.shape[:-1], k)


def kernel(grad: Tensor, operands: tuple[Any, ...]) -> Tensor:
    """The op without torch's dispatcher, as in linear_4bit."""
    if is_grad_enabled():
        refuse_grad(OP, "qbits.functional.linear_4bit", grad, operands[1], *operands[6:])
    try:
        return _C.linear_4bit_grad_x(grad, operands)
    except RuntimeError:  # no such size, which the checks explain, or no memory
        _output(grad, *operands)
        raise


def _kernel(grad: Tensor, *operands: Any) -> Tensor:
    return kernel(grad, operands)


linear_4bit_grad_x = define(
    "linear_4bit_grad_x(Tensor grad, Tensor codes, Tensor scales, str format, int block_size, SymInt n,"
    " SymInt k, Tensor? zeros=None, Tensor? nested_absmax=None, Tensor? nested_code=None, Tensor?"
    " offset=None) -> Tensor",
    _kernel,
    _output,
    leading_dimensions=True,
)
