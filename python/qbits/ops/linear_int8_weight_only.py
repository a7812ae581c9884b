"""The product of x, as it is, and a weight of int8 rows."""

from __future__ import annotations

from torch import Tensor, is_grad_enabled

from qbits import _C
from qbits.ops._library import check_linear_int8, define, refuse_grad

OP = "linear_int8_weight_only"
ADVICE = "qbits.functional.linear_int8"


def _output(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    n = check_linear_int8(OP, x, codes, scales, bias)
    refuse_grad(OP, ADVICE, x, scales, bias)
    return x.new_empty(*x.shape[:-1], n)


def kernel(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """The op without torch's dispatcher, for calls that `bypasses_dispatcher` lets through."""
    # As in linear_int8: libqbits checks the arguments, but sees only how many numbers these have.
    if is_grad_enabled():
        refuse_grad(OP, ADVICE, x, scales, bias)
    if scales.dim() != 1 or (bias is not None and bias.dim() != 1):
        _output(x, codes, scales, bias)
    try:
        return _C.linear_int8_weight_only(x, codes, scales, bias)
    except (RuntimeError, TypeError, ValueError):  # the checks say it better, unless there is no memory
        _output(x, codes, scales, bias)
        raise


linear_int8_weight_only = define(
    f"{OP}(Tensor x, Tensor codes, Tensor scales, Tensor? bias=None) -> Tensor",
    kernel,
    _output,
    leading_dimensions=True,
)

# For programs of torch.export, as linear_int8_with_grad.
linear_int8_weight_only_with_grad = define(
    f"{OP}_with_grad(Tensor x, Tensor codes, Tensor scales, Tensor? bias) -> Tensor",
    kernel,
    _output,
    leading_dimensions=True,
)
