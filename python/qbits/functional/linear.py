"""Products with and lookups in 4-bit weights, with gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qbits import ops

if TYPE_CHECKING:
    from qbits.tensor import QuantizedTensor

_linear = ops.linear_4bit
_grad_x = ops.linear_4bit_grad_x
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled

# The autograd functions lie outside of the ops: cheaper than register_autograd, and the backward pass
# needs only the packed weight.


class _Linear4bit(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
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
        ctx.save_for_backward(codes, scales, zeros, nested_absmax, nested_code, offset)
        ctx.weight = (format, block_size, n, k)
        return _linear(
            x, codes, scales, bias, format, block_size, n, k, zeros, nested_absmax, nested_code, offset
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            codes, scales, zeros, *nested = ctx.saved_tensors
            if torch.is_grad_enabled():  # a backward pass that is itself differentiated
                grad_x = _Linear4bitGradX.apply(grad, codes, scales, zeros, *nested, *ctx.weight)
            else:
                grad_x = _grad_x(grad, codes, scales, *ctx.weight, zeros, *nested)
        if ctx.needs_input_grad[1]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return grad_x, grad_bias, None, None, None, None, None, None, None, None, None, None


class _Linear4bitGradX(torch.autograd.Function):
    """grad W: linear in grad, so its own gradient is the forward product."""

    @staticmethod
    def forward(
        ctx: Any,
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
        ctx.save_for_backward(codes, scales, zeros, nested_absmax, nested_code, offset)
        ctx.weight = (format, block_size, n, k)
        return _grad_x(
            grad, codes, scales, format, block_size, n, k, zeros, nested_absmax, nested_code, offset
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out = _Linear4bit.apply(grad, None, *ctx.saved_tensors, *ctx.weight)
        return out, None, None, None, None, None, None, None, None, None, None


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
    scales = weight.absmax if weight.zeros is None else weight.scales
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return _Linear4bit.apply(
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
    return _linear(
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
