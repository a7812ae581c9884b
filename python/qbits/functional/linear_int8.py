"""Products with a weight of int8 rows: LLM.int8()'s, or of x as it is; with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from qbits import ops
from qbits.functional.differentiation import (
    apply_of,
    grad_of_bias,
    is_differentiated,
    refuse_compiled_transform,
    tangent_of_product,
)
from qbits.functional.int8 import as_threshold
from qbits.functional.linear import autocast_dtype
from qbits.ops._library import LIBRARY, bypasses_dispatcher, check_is_tensor, is_weight_only
from qbits.ops.linear_int8 import kernel as linear_int8_kernel
from qbits.ops.linear_int8 import linear_int8_with_grad
from qbits.ops.linear_int8_weight_only import kernel as weight_only_kernel
from qbits.ops.linear_int8_weight_only import linear_int8_weight_only_with_grad


def linear_int8(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    threshold: float = 0.0,
    activation_bits: int = 8,
) -> Tensor:
    """x W^T + bias, x being quantized as by quantize_int8_rowwise, but for its outlier columns.

    The product of the codes is exact; that of the outlier columns and the codes of W is summed in float32.
    With `activation_bits` 16 no part of x is quantized, and all is summed in float32. A NaN or an infinity in
    x reaches the row that holds it and no other.

    Differentiable, any number of times, in `x` and `bias`; the weight is a constant. To gradients the
    quantization of x is the identity (straight-through): that of x is grad W, W dequantized to grad's dtype.

    Args:
        x: float32, bfloat16 or float16 [..., K], of 1 to 8 dimensions.
        codes: int8 [N, K], the rows of W: bitsandbytes' CB.
        scales: float32 [N], not negative: bitsandbytes' SCB. On the CPU a negative one or a NaN raises; on
            CUDA, where looking would synchronise, it is used.
        bias: [N] in x's dtype, or None.
        threshold: from where on an element of x is an outlier, finite; 0 for no outliers. LLM.int8() takes 6.
        activation_bits: 8 quantizes x. 16 takes it as it is, in its own dtype, float32 included; then no
            column need be kept apart, and the threshold must be 0.

    Returns:
        [..., N] in x's dtype.

    Raises:
        ValueError: a shape, a device, the threshold, a scale or the number of bits does not fit.
        TypeError: a dtype does not fit, an argument is no tensor, or the threshold no number.
    """
    op = "linear_int8"
    for what, tensor in (("x", x), ("codes", codes), ("scales", scales)):
        check_is_tensor(op, what, tensor)
    if bias is not None:
        check_is_tensor(op, "bias", bias)
    threshold = as_threshold(op, threshold)
    weight_only = is_weight_only(op, activation_bits, threshold)
    if scales.requires_grad:
        scales = scales.detach()
    if torch.compiler.is_exporting():
        if weight_only:
            return linear_int8_weight_only_with_grad(x, codes, scales, bias)
        return linear_int8_with_grad(x, codes, scales, bias, threshold)
    refuse_compiled_transform(op)
    if is_differentiated(x, bias):
        return _apply(_LinearInt8)(x, bias, codes, scales, threshold, weight_only)
    return product(x, codes, scales, bias, threshold, weight_only)


class _LinearInt8(torch.autograd.Function):
    """Outside of the op, as that of linear_4bit: the backward pass keeps nothing but the int8 weight."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        bias: Tensor | None,
        codes: Tensor,
        scales: Tensor,
        threshold: float,
        weight_only: bool,
    ) -> Tensor:
        return product(x, codes, scales, bias, threshold, weight_only)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_weight(ctx, *inputs[2:4])
        ctx.out_shape = output.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grad, ctx.needs_input_grad[1]), None, None, None, None


class _Dense(torch.autograd.Function):
    """x W or x W^T, W dequantized and dropped: linear in x, so the gradient is the other one of the two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, codes: Tensor, scales: Tensor, transpose: bool) -> Tensor:
        weight = ops.dequantize_int8_rowwise(codes, scales, x.dtype)
        if transpose:
            weight = weight.t()
        return matmul(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_weight(ctx, *inputs[1:3])
        ctx.transpose = inputs[3]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _dense(grad, ctx.saved_tensors, not ctx.transpose), None, None, None


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a b in their own dtype, whatever autocast would have."""
    if autocast_dtype(a) is None:
        return a @ b
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def _gradients(ctx: Any, grad: Tensor, needs_bias: bool) -> tuple[Tensor | None, Tensor | None]:
    grad_x = _dense(grad, ctx.saved_tensors, False) if ctx.needs_input_grad[0] else None
    return grad_x, grad_of_bias(grad) if needs_bias else None


def _save_weight(ctx: Any, codes: Tensor, scales: Tensor) -> None:
    ctx.save_for_backward(codes, scales)
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(codes, scales)


class _LinearInt8Forward(_LinearInt8):
    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, bias: Tensor | None, *rest: None) -> Tensor:
        out = None if x is None else _dense(x, ctx.saved_tensors, True)
        return tangent_of_product(out, bias, ctx.out_shape)


class _DenseForward(_Dense):
    @staticmethod
    def jvp(ctx: Any, x: Tensor, *rest: None) -> Tensor:
        return _dense(x, ctx.saved_tensors, ctx.transpose)


_FORWARD: dict[Any, Any] = {_LinearInt8: _LinearInt8Forward, _Dense: _DenseForward}


def _apply(function: Any) -> Any:
    return apply_of(function, _FORWARD)


def _setup_exported(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _save_weight(ctx, *inputs[1:3])


def _backward_exported(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_bias = _gradients(ctx, grad, ctx.needs_input_grad[3])
    # Then come the threshold's, where the op has one.
    return grad_x, None, None, grad_bias, *(None,) * (len(ctx.needs_input_grad) - 4)


for _name in ("linear_int8_with_grad", "linear_int8_weight_only_with_grad"):
    torch.library.register_autograd(
        f"qbits::{_name}", _backward_exported, setup_context=_setup_exported, lib=LIBRARY
    )


def _dense(x: Tensor, weight: tuple[Tensor, Tensor], transpose: bool) -> Tensor:
    # A compiled gradient is not differentiated again, and Dynamo traces no function in a function.
    again = torch.is_grad_enabled() or forward_ad._current_level >= 0
    function = _apply(_Dense) if again and not torch.compiler.is_compiling() else _Dense.forward
    return function(x, *weight, transpose)


def product(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    threshold: float,
    weight_only: bool,
) -> Tensor:
    """linear_int8 of arguments it has looked at, without gradients."""
    if not torch.compiler.is_dynamo_compiling() and bypasses_dispatcher(x, codes, scales, bias):
        try:
            if weight_only:
                return weight_only_kernel(x, codes, scales, bias)
            return linear_int8_kernel(x, codes, scales, bias, threshold)
        except TypeError:  # from libqbits: an error, or a tensor of a kind that only the dispatcher knows
            pass
    if weight_only:
        return ops.linear_int8_weight_only(x, codes, scales, bias)
    return ops.linear_int8(x, codes, scales, bias, threshold)
