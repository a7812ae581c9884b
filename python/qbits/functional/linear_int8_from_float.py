"""The product of LLM.int8() with a float weight that is being trained."""

from __future__ import annotations

import math
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
from qbits.functional.linear_int8 import linear_int8, matmul, product
from qbits.ops._library import FLOATS, check, check_dtype, check_is_tensor, describe, is_weight_only


def linear_int8_from_float(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    threshold: float = 0.0,
    activation_bits: int = 8,
) -> Tensor:
    """linear_int8 with a float weight, each row of which is quantized anew in every call, for training it.

    Differentiable, any number of times, in `x`, `weight` and `bias`. To gradients both quantizations are the
    identity (straight-through): that of x is grad W, W as its codes have it, that of the weight grad^T x. In
    programs of torch.export the weight is a constant.

    Args:
        x, bias, threshold, activation_bits: as for linear_int8; with 16 only the weight is quantized.
        weight: float32, bfloat16 or float16 [N, K], of x's dtype or another. On the CPU one with a NaN or an
            infinity raises; on CUDA it makes its row's results NaN.

    Returns:
        [..., N] in x's dtype.

    Raises:
        ValueError: a shape, a device, the threshold or the number of bits does not fit, or a value of the
            weight is not finite.
        TypeError: a dtype does not fit, or an argument is no tensor.
    """
    op = "linear_int8_from_float"
    for what, tensor in (("x", x), ("weight", weight)):
        check_is_tensor(op, what, tensor)
        check_dtype(op, what, tensor.dtype, FLOATS)
    check(weight.dim() == 2, op, "weight", describe(weight), "2 dimensions")
    if bias is not None:
        check_is_tensor(op, "bias", bias)
    threshold = as_threshold(op, threshold)
    weight_only = is_weight_only(op, activation_bits, threshold)
    if torch.compiler.is_exporting():
        return linear_int8(x, *_rows(weight), bias, threshold, activation_bits)
    refuse_compiled_transform(op)
    if is_differentiated(x, bias) or is_differentiated(weight, None):
        return _apply(_LinearInt8FromFloat)(x, weight, bias, threshold, weight_only)
    return _product(x, weight, bias, threshold, weight_only)


class _LinearInt8FromFloat(torch.autograd.Function):
    """Keeps the weight itself, which the backward pass quantizes again: no memory for its codes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, threshold: float, weight_only: bool
    ) -> Tensor:
        return _product(x, weight, bias, threshold, weight_only)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight = inputs[:2]
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        if forward_ad._current_level >= 0:
            ctx.save_for_forward(x, weight)
        ctx.out_shape = output.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_x = matmul(grad, _rounded(weight, grad.dtype)) if needs_x else None
        grad_weight = None
        if needs_weight:
            m = math.prod(grad.shape[:-1])
            rows, of_x = grad.reshape(m, grad.shape[-1]), x.reshape(m, x.shape[-1])
            grad_weight = matmul(rows.t(), of_x).to(weight.dtype)
        return grad_x, grad_weight, grad_of_bias(grad) if needs_bias else None, None, None


class _Rounded(torch.autograd.Function):
    """The weight as its codes have it; to gradients the weight."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, dtype: torch.dtype) -> Tensor:
        return ops.dequantize_int8_rowwise(*_rows(weight), dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dtypes = inputs[0].dtype, inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.to(ctx.dtypes[0]), None


def _rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    again = torch.is_grad_enabled() or forward_ad._current_level >= 0  # as in linear_int8's _dense
    function = _apply(_Rounded) if again and not torch.compiler.is_compiling() else _Rounded.forward
    return function(weight, dtype)


def _rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    codes, scales, *_ = ops.quantize_int8_rowwise(weight.detach())
    return codes, scales


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, threshold: float, weight_only: bool) -> Tensor:
    codes, scales = _rows(weight)
    if torch.compiler.is_compiling():
        return product(x, codes, scales, bias, threshold, weight_only)
    try:
        return product(x, codes, scales, bias, threshold, weight_only)
    except ValueError as error:
        # Scales of finite rows are right. Only the product looks at them: no second time for this message.
        if "weight scales" not in str(error):
            raise
        message = "[linear_int8_from_float] weight: got a NaN or an infinity, want finite numbers"
        raise ValueError(message) from error


class _LinearInt8FromFloatForward(_LinearInt8FromFloat):
    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, weight: Tensor | None, bias: Tensor | None, *rest: None) -> Tensor:
        of_x, of_weight = ctx.saved_tensors
        out = None if x is None else matmul(x, _rounded(of_weight, x.dtype).t())
        if weight is not None:
            part = matmul(of_x, weight.to(of_x.dtype).t())
            out = part if out is None else out + part
        return tangent_of_product(out, bias, ctx.out_shape)


class _RoundedForward(_Rounded):
    @staticmethod
    def jvp(ctx: Any, weight: Tensor, *rest: None) -> Tensor:
        return weight.to(ctx.dtypes[1])


_FORWARD: dict[Any, Any] = {
    _LinearInt8FromFloat: _LinearInt8FromFloatForward,
    _Rounded: _RoundedForward,
}


def _apply(function: Any) -> Any:
    return apply_of(function, _FORWARD)
