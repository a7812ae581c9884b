"""A product with a 4-bit weight, which is read in its packed form: x W^T + bias."""

from __future__ import annotations

from typing import Any

from torch import Tensor, is_grad_enabled

from qbits import _C
from qbits.ops._library import (
    FLOATS,
    check,
    check_dtype,
    check_tensor,
    check_vector,
    check_weight_4bit,
    define,
    describe,
    refuse_grad,
)

OP = "linear_4bit"


def _output(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
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
        OP, x.device, codes, scales, format, block_size, n, k, zeros, nested_absmax, nested_code, offset
    )
    check_tensor(OP, "x", x, FLOATS)
    check(x.dim() > 0, OP, "x", "0 dimensions", "at least 1")
    check(x.shape[-1] == k, OP, "x", describe(x), f"{k} columns")
    if bias is not None:
        check_vector(OP, "bias", bias, (x.dtype,), x.device, n)
    refuse_grad(
        OP, "qbits.functional.linear_4bit", x, bias, scales, zeros, nested_absmax, nested_code, offset
    )
    return x.new_empty(*x.shape[:-1], n)


direct = _C.linear_4bit_direct
"""(x, weight, bias) -> the product where it bypasses the dispatcher, or what is left to be done.

The weight's operands: autograd is to follow it. None: the op is to be called. So it is after a TypeError,
ValueError or RuntimeError, which it explains.
"""


def kernel(x: Tensor, bias: Tensor | None, operands: tuple[Any, ...]) -> Tensor:
    """The op without torch's dispatcher, for calls that `bypasses_dispatcher` lets through.

    `operands` are the other arguments: codes, scales, format, block_size, n, k, zeros, and so on.
    """
    # Called once per layer and token: libqbits checks the arguments, and faster than _output.
    if is_grad_enabled():
        refuse_grad(OP, "qbits.functional.linear_4bit", x, bias, operands[1], *operands[6:])
    if bias is not None and bias.dim() != 1:  # libqbits sees only how many numbers it has
        codes, scales, *rest = operands
        _output(x, codes, scales, bias, *rest)
    try:
        return _C.linear_4bit(x, bias, operands)
    except TypeError:  # which names the dtypes of all tensors
        check_dtype(OP, "x", x.dtype, FLOATS)
        raise
    except RuntimeError:  # no such size, which the checks explain, or no memory
        codes, scales, *rest = operands
        _output(x, codes, scales, bias, *rest)
        raise


def _kernel(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    return kernel(x, bias, (codes, scales, *rest))


_ARGUMENTS = (
    "(Tensor x, Tensor codes, Tensor scales, Tensor? bias, str format, int block_size, SymInt n, SymInt k,"
    " Tensor? zeros=None, Tensor? nested_absmax=None, Tensor? nested_code=None, Tensor? offset=None)"
    " -> Tensor"
)

linear_4bit = define(OP + _ARGUMENTS, _kernel, _output, leading_dimensions=True)

# For programs of torch.export, which hold ops and no autograd functions. functional/linear.py gives it
# gradients, which make a call too slow for eager mode.
linear_4bit_with_grad = define(f"{OP}_with_grad{_ARGUMENTS}", _kernel, _output, leading_dimensions=True)
