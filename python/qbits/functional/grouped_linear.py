"""The products of a mixture of experts with 4-bit weights, with gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from qbits import ops
from qbits.functional.differentiation import apply_of, is_differentiated, refuse_compiled_transform
from qbits.functional.linear import refuse_input

if TYPE_CHECKING:
    from qbits.tensor import QuantizedTensor

OP = "grouped_linear_4bit"

# Outside of the ops, as those of linear_4bit. The operands are offsets and `weight`, which is (codes, scales,
# zeros, nested_absmax, nested_code, offset, format, block_size, n, k).


class _GroupedLinear4bit(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, offsets: Tensor, *weight: Any) -> Tensor:
        codes, scales, zeros, *nested, format, block_size, n, k = weight
        return ops.grouped_linear_4bit(
            x, offsets, codes, scales, format, block_size, n, k, bias, zeros, *nested
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_weight(ctx, inputs[2:])
        ctx.rows = output.shape[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            function = _GroupedLinear4bitGradX
            # A compiled gradient is not differentiated again, and Dynamo traces no function in a function.
            compiling = torch.compiler.is_compiling()
            grad_x = (function.forward if compiling else _apply(function))(grad, *_operands(ctx))
        if ctx.needs_input_grad[1]:
            grad_bias = _grad_bias(grad, ctx.saved_tensors[0])
        return grad_x, grad_bias, None, *[None] * 10


class _GroupedLinear4bitGradX(torch.autograd.Function):
    """grad W: linear in grad, so its own gradient is the forward product."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, offsets: Tensor, *weight: Any) -> Tensor:
        codes, scales, zeros, *nested, format, block_size, n, k = weight
        return ops.grouped_linear_4bit_grad_x(
            grad, offsets, codes, scales, format, block_size, n, k, zeros, *nested
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_weight(ctx, inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _apply(_GroupedLinear4bit)(grad, None, *_operands(ctx)), None, *[None] * 10


class _GroupedLinear4bitForward(_GroupedLinear4bit):
    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, bias: Tensor | None, *rest: None) -> Tensor:
        out = None
        if x is not None:
            out = _apply(_GroupedLinear4bit)(x, None, *_operands(ctx))
        if bias is not None:
            offsets = ctx.saved_tensors[0]
            row = torch.arange(ctx.rows, dtype=offsets.dtype, device=offsets.device)
            expert = torch.searchsorted(offsets, row, right=True) - 1
            rows = bias[expert.clamp(0, bias.shape[0] - 1)]
            out = rows if out is None else out + rows
        assert out is not None
        return out


class _GroupedLinear4bitGradXForward(_GroupedLinear4bitGradX):
    @staticmethod
    def jvp(ctx: Any, grad: Tensor, *rest: None) -> Tensor:
        return _apply(_GroupedLinear4bitGradX)(grad, *_operands(ctx))


_FORWARD: dict[Any, Any] = {
    _GroupedLinear4bit: _GroupedLinear4bitForward,
    _GroupedLinear4bitGradX: _GroupedLinear4bitGradXForward,
}


def _apply(function: Any) -> Any:
    return apply_of(function, _FORWARD)


def _save_weight(ctx: Any, operands: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*operands[:7])
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(*operands[:7])
    ctx.weight = operands[7:]


def _operands(ctx: Any) -> tuple[Any, ...]:
    return *ctx.saved_tensors, *ctx.weight


def _grad_bias(grad: Tensor, offsets: Tensor) -> Tensor:
    """The sum of each expert's rows, as a product: adding by index would not be deterministic."""
    row = torch.arange(grad.shape[0], device=grad.device)
    mine = (row >= offsets[:-1, None]) & (row < offsets[1:, None])
    grad = torch.where(mine.any(0)[:, None], grad, 0)  # rows of no expert may hold anything
    return mine.to(grad.dtype) @ grad


def grouped_linear_4bit(
    x: Tensor, weight: QuantizedTensor, offsets: Tensor, bias: Tensor | None = None
) -> Tensor:
    """x[t] W[e]^T + bias[e] for the rows t of each expert e, from offsets[e] to offsets[e + 1].

    Reads `weight` in its packed form and accumulates in float32. On CUDA nothing synchronises, whatever the
    offsets, so that a captured graph may be replayed with other ones. Differentiable in `x` and `bias`.

    Args:
        x: float32, bfloat16 or float16 [T, K], its rows sorted by expert.
        weight: a QuantizedTensor [E, N, K] in a 4-bit format, as `qbits.quantize` makes of a 3-D tensor.
        offsets: int32 [E + 1], ascending, from 0 to T: the `offs` of torch's grouped_mm with a 0 before them.
            Rows of the result before the first and from the last on hold arbitrary values. On the CPU other
            offsets raise; on CUDA they are taken as the nearest of 0 to T, and an expert that ends before it
            begins has no rows.
        bias: [E, N] in x's dtype, or None.

    Returns:
        [T, N] in x's dtype.

    Raises:
        ValueError: a shape, device or offset does not fit, or the weight is not 3-D in a 4-bit format.
        TypeError: a dtype does not fit, or `weight` is not a QuantizedTensor.
    """
    if not getattr(weight, "is_4bit_experts", False):
        _refuse_weight(weight)
    for what, value in (("x", x), ("offsets", offsets)):
        if not isinstance(value, Tensor):
            refuse_input(OP, what, value)
    if bias is not None and not isinstance(bias, Tensor):
        refuse_input(OP, "bias", bias)
    experts, n, k = weight.shape
    if offsets.shape != (experts + 1,):
        raise ValueError(f"[{OP}] offsets: got shape {list(offsets.shape)}, want [{experts + 1}]")
    if bias is not None and bias.shape != (experts, n):
        raise ValueError(f"[{OP}] bias: got shape {list(bias.shape)}, want [{experts}, {n}]")
    scales = weight.absmax if weight.zeros is None else weight.scales
    nested = (weight.nested_absmax, weight.nested_code, weight.offset)
    facts = (weight.format, weight.block_size, n, k)
    refuse_compiled_transform(OP)
    if is_differentiated(x, bias):
        return _apply(_GroupedLinear4bit)(
            x, bias, offsets, weight.codes, scales, weight.zeros, *nested, *facts
        )
    return ops.grouped_linear_4bit(x, offsets, weight.codes, scales, *facts, bias, weight.zeros, *nested)


def _refuse_weight(weight: object) -> None:
    want = "a 3-D QuantizedTensor in a 4-bit format"
    if hasattr(weight, "is_4bit_experts"):
        raise ValueError(f"[{OP}] weight: got {weight!r}, want {want}")
    raise TypeError(f"[{OP}] weight: got {type(weight).__name__}, want {want}")
