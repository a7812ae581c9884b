"""Products with and lookups in 4-bit weights, with gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from qbits import ops
from qbits.functional.differentiation import (
    apply_of,
    grad_of_bias,
    is_differentiated,
    tangent_of_product,
)
from qbits.ops._library import LIBRARY, bypasses_dispatcher
from qbits.ops.linear_4bit import direct, linear_4bit_with_grad
from qbits.ops.linear_4bit import kernel as linear_4bit_kernel
from qbits.ops.linear_4bit_grad_x import kernel as linear_4bit_grad_x_kernel

if TYPE_CHECKING:
    from qbits.tensor import QuantizedTensor

_linear = ops.linear_4bit
_grad_x = ops.linear_4bit_grad_x
_is_exporting = torch.compiler.is_exporting
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled

# The autograd functions lie outside of the ops: cheaper than register_autograd, and the backward pass
# needs only the packed weight, whose tensors and the rest come as in QuantizedTensor.operands.


class _Linear4bit(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        bias: Tensor | None,
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
        return _linear(
            x, codes, scales, bias, format, block_size, n, k, zeros, nested_absmax, nested_code, offset
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_weight(ctx, inputs[2:])
        ctx.out_shape = output.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_bias = _gradients(ctx, grad, ctx.needs_input_grad[1])
        return grad_x, grad_bias, None, None, None, None, None, None, None, None, None, None


class _Linear4bitDirect(torch.autograd.Function):
    """_Linear4bit where the dispatcher is bypassed; the operands are one argument, which autograd skips."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, operands: tuple[Any, ...]) -> Tensor:
        # _save_weight without what cannot be here, for each layer and token comes this way: 0.5 us less.
        ctx.weight = operands[2:6]
        if len(operands) == 6:
            ctx.save_for_backward(operands[0], operands[1])
        else:
            ctx.save_for_backward(*operands[:2], *operands[6:])
        return linear_4bit_kernel(x, bias, operands)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grad, ctx.needs_input_grad[1]), None


class _Linear4bitGradX(torch.autograd.Function):
    """grad W: linear in grad, so its own gradient is the forward product."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
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
        return _grad_x(
            grad, codes, scales, format, block_size, n, k, zeros, nested_absmax, nested_code, offset
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_weight(ctx, inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out = _apply(_Linear4bit)(grad, None, *_operands(ctx))
        return out, None, None, None, None, None, None, None, None, None, None


def _gradients(ctx: Any, grad: Tensor, needs_bias: bool) -> tuple[Tensor | None, Tensor | None]:
    grad_x = None
    if ctx.needs_input_grad[0]:
        operands = _operands(ctx)
        if torch.is_grad_enabled() or forward_ad._current_level >= 0:  # itself differentiated
            grad_x = _apply(_Linear4bitGradX)(grad, *operands)
        else:
            grad_x = _constant_grad_x(grad, operands)
    return grad_x, grad_of_bias(grad) if needs_bias else None


def _constant_grad_x(grad: Tensor, operands: tuple[Any, ...]) -> Tensor:
    if not torch.compiler.is_compiling() and bypasses_dispatcher(grad):
        try:
            return linear_4bit_grad_x_kernel(grad, operands)
        except TypeError:  # as in linear_4bit
            pass
    return _grad_x(grad, *operands)


def _save_weight(ctx: Any, operands: tuple[Any, ...]) -> None:
    tensors = operands[:2] + operands[6:]
    ctx.save_for_backward(*tensors)
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(*tensors)
    ctx.weight = operands[2:6]


def _operands(ctx: Any) -> tuple[Any, ...]:
    codes, scales, *rest = ctx.saved_tensors
    return codes, scales, *ctx.weight, *rest


class _Linear4bitForward(_Linear4bit):
    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, bias: Tensor | None, *rest: None) -> Tensor:
        out = None if x is None else _apply(_Linear4bit)(x, None, *_operands(ctx))
        return tangent_of_product(out, bias, ctx.out_shape)


class _Linear4bitGradXForward(_Linear4bitGradX):
    @staticmethod
    def jvp(ctx: Any, grad: Tensor, *rest: None) -> Tensor:
        return _apply(_Linear4bitGradX)(grad, *_operands(ctx))


_FORWARD: dict[Any, Any] = {_Linear4bit: _Linear4bitForward, _Linear4bitGradX: _Linear4bitGradXForward}
_apply_direct = super(torch.autograd.Function, _Linear4bitDirect).apply


def _apply(function: Any) -> Any:
    return apply_of(function, _FORWARD)


def _setup_exported(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _save_weight(ctx, inputs[1:3] + inputs[4:])


def _backward_exported(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_bias = _gradients(ctx, grad, ctx.needs_input_grad[3])
    return grad_x, None, None, grad_bias, None, None, None, None, None, None, None, None


torch.library.register_autograd(
    "qbits::linear_4bit_with_grad", _backward_exported, setup_context=_setup_exported, lib=LIBRARY
)


def linear_4bit(x: Tensor, weight: QuantizedTensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, reading `weight` in its packed form; accumulated in float32.

    Differentiable, any number of times, in `x` and `bias`; the weight is treated as a constant.

    Args:
        x: float32, bfloat16 or float16 [..., K].
        weight: a QuantizedTensor [N, K] in a 4-bit format.
        bias: [N] in x's dtype, or None.

    Returns:
        [..., N] in x's dtype.

    Raises:
        ValueError: a shape or device does not fit, or the weight is not a 4-bit matrix.
        TypeError: a dtype does not fit, or `weight` is not a QuantizedTensor.
    """
    out = linear_4bit_direct(x, weight, bias)
    return linear_4bit_dispatched(x, weight, bias) if out is None else out


def linear_4bit_direct(x: Tensor, weight: QuantizedTensor, bias: Tensor | None) -> Tensor | None:
    """linear_4bit where no one else has a part in it; None where someone has, or an argument is wrong."""
    # Each layer and token comes this way. Most have nothing to do with autograd and are one call of libqbits.
    if _is_dynamo_compiling():
        return None
    try:
        out = direct(x, weight, bias)
    except (TypeError, ValueError, RuntimeError):  # which the op explains
        return None
    if not isinstance(out, tuple):
        return out
    try:
        return _apply_direct(x, bias, out)
    except TypeError:  # as above, or a tensor of a kind that only the dispatcher knows
        return None


def linear_4bit_dispatched(x: Tensor, weight: QuantizedTensor, bias: Tensor | None) -> Tensor:
    """linear_4bit where torch's dispatcher, torch.compile or torch.export has a part in it."""
    if not getattr(weight, "is_4bit_matrix", False):
        _refuse_weight("linear_4bit", weight)
    if not isinstance(x, Tensor):
        refuse_input("linear_4bit", "x", x)
    if bias is not None and not isinstance(bias, Tensor):
        refuse_input("linear_4bit", "bias", bias)
    if _is_dynamo_compiling() and autocast_dtype(x) is None:
        # Comes back here when the graph is lowered. Dynamo itself would read codes and scales as they were
        # before the graph's own writes to the weight.
        return torch.nn.functional.linear(x, weight.detach(), bias)
    exporting = _is_exporting()
    codes, scales, *rest = weight.operands  # type: ignore[misc]
    if not exporting and is_differentiated(x, bias):
        return _apply(_Linear4bit)(x, bias, codes, scales, *rest)
    op = linear_4bit_with_grad if exporting else _linear
    return op(x, codes, scales, bias, *rest)


def embedding_4bit(indices: Tensor, weight: QuantizedTensor, dtype: torch.dtype | None = None) -> Tensor:
    """The rows `indices` of `weight`, dequantized.

    Args:
        indices: int64 or int32, any shape. On the CPU an index outside [0, N) raises; on CUDA, where
            checking would synchronise, its row is NaN.
        weight: a QuantizedTensor [N, K] in a 4-bit format.
        dtype: of the result: float32, bfloat16 or float16; by default the weight's own.

    Returns:
        [*indices.shape, K].
    """
    if not getattr(weight, "is_4bit_matrix", False):
        _refuse_weight("embedding_4bit", weight)
    if not isinstance(indices, Tensor):
        refuse_input("embedding_4bit", "indices", indices)
    if torch.compiler.is_dynamo_compiling() and dtype in (None, weight.logical_dtype):
        return torch.nn.functional.embedding(indices, weight.detach())  # as in linear_4bit
    operands: Any = weight.operands
    return ops.embedding_4bit(indices, *operands[:6], dtype or weight.logical_dtype, *operands[6:])


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype an enclosing torch.autocast asks of a product with `x`; None without one."""
    if not _is_any_autocast_enabled():  # the cheap question first: this is asked once a layer and token
        return None
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def refuse_input(op: str, what: str, value: object) -> None:
    """Raises the TypeError for an input that is no tensor."""
    raise TypeError(f"[{op}] {what}: got {type(value).__name__}, want a tensor")


def _refuse_weight(op: str, weight: object) -> None:
    want = "a 2-D QuantizedTensor in a 4-bit format"
    if hasattr(weight, "is_4bit_matrix"):
        raise ValueError(f"[{op}] weight: got {weight!r}, want {want}")
    raise TypeError(f"[{op}] weight: got {type(weight).__name__}, want {want}")
