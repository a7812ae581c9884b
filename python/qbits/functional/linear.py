"""Products with and lookups in 4-bit weights, with gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from qbits import ops
from qbits.ops._library import LIBRARY
from qbits.ops.linear_4bit import linear_4bit_with_grad

if TYPE_CHECKING:
    from qbits.tensor import QuantizedTensor

_linear = ops.linear_4bit
_grad_x = ops.linear_4bit_grad_x
_is_exporting = torch.compiler.is_exporting
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled

# The autograd functions lie outside of the ops: cheaper than register_autograd, and the backward pass
# needs only the packed weight.


class _Linear4bit(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        bias: Tensor | None,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        nested_absmax: Tensor | None,
        nested_code: Tensor | None,
        offset: Tensor | None,
        format: str,
        block_size: int,
        n: int,
        k: int,
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
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            codes, scales, zeros, *nested = ctx.saved_tensors
            if torch.is_grad_enabled() or forward_ad._current_level >= 0:  # itself differentiated
                grad_x = _apply(_Linear4bitGradX)(grad, codes, scales, zeros, *nested, *ctx.weight)
            else:
                grad_x = _grad_x(grad, codes, scales, *ctx.weight, zeros, *nested)
        if ctx.needs_input_grad[1]:
            grad_bias = _grad_bias(grad)
        return grad_x, grad_bias, None, None, None, None, None, None, None, None, None, None


class _Linear4bitGradX(torch.autograd.Function):
    """grad W: linear in grad, so its own gradient is the forward product."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        nested_absmax: Tensor | None,
        nested_code: Tensor | None,
        offset: Tensor | None,
        format: str,
        block_size: int,
        n: int,
        k: int,
    ) -> Tensor:
        return _grad_x(
            grad, codes, scales, format, block_size, n, k, zeros, nested_absmax, nested_code, offset
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_weight(ctx, inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out = _apply(_Linear4bit)(grad, None, *ctx.saved_tensors, *ctx.weight)
        return out, None, None, None, None, None, None, None, None, None, None


def _grad_bias(grad: Tensor) -> Tensor:
    return grad.sum_to_size(grad.shape[-1:])


def _save_weight(ctx: Any, weight: tuple[Any, ...]) -> None:
    ctx.save_for_backward(*weight[:6])
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(*weight[:6])
    ctx.weight = weight[6:]


# torch.compile does not trace a function that has a jvp.
class _Linear4bitForward(_Linear4bit):
    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, bias: Tensor | None, *rest: None) -> Tensor:
        out = None
        if x is not None:
            out = _apply(_Linear4bit)(x, None, *ctx.saved_tensors, *ctx.weight)
        if bias is not None:
            out = bias.expand(ctx.out_shape) if out is None else out + bias
        assert out is not None
        return out


class _Linear4bitGradXForward(_Linear4bitGradX):
    @staticmethod
    def jvp(ctx: Any, grad: Tensor, *rest: None) -> Tensor:
        return _apply(_Linear4bitGradX)(grad, *ctx.saved_tensors, *ctx.weight)


_FORWARD = {_Linear4bit: _Linear4bitForward, _Linear4bitGradX: _Linear4bitGradXForward}
# torch's `apply` looks at the signature of `forward` in each call, which takes longer than the product of a
# small layer; what it adds to this one matters only to torch.func and torch.compile.
_EAGER = {function: super(torch.autograd.Function, function).apply for function in _FORWARD}


def _apply(function: Any) -> Any:
    if torch.compiler.is_compiling():
        return function.apply
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return _FORWARD[function].apply
    return _EAGER[function]


def _setup_exported(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, codes, scales, bias, format, block_size, n, k, *rest = inputs
    _Linear4bit.setup_context(ctx, (x, bias, codes, scales, *rest, format, block_size, n, k), output)


def _backward_exported(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_x, needs_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
    grad_x = _apply(_Linear4bitGradX)(grad, *ctx.saved_tensors, *ctx.weight) if needs_x else None
    grad_bias = _grad_bias(grad) if needs_bias else None
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
    if not getattr(weight, "is_4bit_matrix", False):
        _refuse_weight("linear_4bit", weight)
    if not isinstance(x, Tensor):
        refuse_input("linear_4bit", "x", x)
    if torch.compiler.is_dynamo_compiling() and autocast_dtype(x) is None:
        # Comes back here when the graph is lowered. Dynamo itself would read codes and scales as they were
        # before the graph's own writes to the weight.
        return torch.nn.functional.linear(x, weight.detach(), bias)
    scales = weight.absmax if weight.zeros is None else weight.scales
    exporting = _is_exporting()
    differentiated = torch.is_grad_enabled() and (
        x.requires_grad or (bias is not None and bias.requires_grad)
    )
    if not exporting and (differentiated or forward_ad._current_level >= 0):
        return _apply(_Linear4bit)(
            x,
            bias,
            weight.codes,
            scales,
            weight.zeros,
            weight.nested_absmax,
            weight.nested_code,
            weight.offset,
            weight.format,
            weight.block_size,
            weight.rows,
            weight.cols,
        )
    op = linear_4bit_with_grad if exporting else _linear
    return op(
        x,
        weight.codes,
        scales,
        bias,
        weight.format,
        weight.block_size,
        weight.rows,
        weight.cols,
        weight.zeros,
        weight.nested_absmax,
        weight.nested_code,
        weight.offset,
    )


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
    return ops.embedding_4bit(
        indices,
        weight.codes,
        weight.absmax if weight.zeros is None else weight.scales,
        weight.format,
        weight.block_size,
        weight.rows,
        weight.cols,
        dtype or weight.logical_dtype,
        weight.zeros,
        weight.nested_absmax,
        weight.nested_code,
        weight.offset,
    )


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
