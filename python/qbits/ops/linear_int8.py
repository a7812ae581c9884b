"""The product of LLM.int8(): x, quantized row by row, times a weight of int8 rows; outlier columns apart."""

from __future__ import annotations

from torch import Tensor, is_grad_enabled

from qbits import _C
from qbits.ops._library import check_linear_int8, check_threshold, define, refuse_grad

OP = "linear_int8"
ADVICE = "qbits.functional.linear_int8"


def _output(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None, threshold: float = 0.0
) -> Tensor:
    check_threshold(OP, threshold)
    n = check_linear_int8(OP, x, codes, scales, bias)
    refuse_grad(OP, ADVICE, x, scales, bias)
    return x.new_empty(*x.shape[:-1], n)


def kernel(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None, threshold: float = 0.0
) -> Tensor:
    """The op without torch's dispatcher, for calls that `bypasses_dispatcher` lets through."""
    # Called once per layer and token: libqbits checks the arguments, and faster than _output.
    if is_grad_enabled():
        refuse_grad(OP, ADVICE, x, scales, bias)
    check_threshold(OP, threshold)
    # Of these libqbits sees only how many numbers they have.
    if scales.dim() != 1 or (bias is not None and bias.dim() != 1):
        _output(x, codes, scales, bias, threshold)
    try:
        return _C.linear_int8(x, codes, scales, bias, threshold)
    except (RuntimeError, TypeError, ValueError):  # the checks say it better, unless there is no memory
        _output(x, codes, scales, bias, threshold)
        raise


def _rows_are_independent(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None, threshold: float = 0.0
) -> bool:
    """Whether rows of x may be put together: with a threshold, those of one call share their outliers."""
    return threshold == 0


linear_int8 = define(
    "linear_int8(Tensor x, Tensor codes, Tensor scales, Tensor? bias=None, float threshold=0.0) -> Tensor",
    kernel,
    _output,
    leading_dimensions=_rows_are_independent,
)

# For programs of torch.export, as linear_4bit_with_grad; functional/linear_int8.py gives it gradients. It has
# no defaults: autograd would not see arguments left to them.
linear_int8_with_grad = define(
    "linear_int8_with_grad(Tensor x, Tensor codes, Tensor scales, Tensor? bias, float threshold) -> Tensor",
    kernel,
    _output,
    leading_dimensions=_rows_are_independent,
)
