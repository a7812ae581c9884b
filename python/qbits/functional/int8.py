"""LLM.int8() (Dettmers et al., arXiv 2208.07339): rows in 8 bits with one scale each, and their products."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import _register_namedtuple

from qbits import ops
from qbits.functional.differentiation import (
    apply_of,
    grad_of_bias,
    is_differentiated,
    refuse_compiled_transform,
    tangent_of_product,
)
from qbits.functional.linear import autocast_dtype
from qbits.ops._library import LIBRARY, bypasses_dispatcher, check_is_tensor
from qbits.ops.linear_int8 import kernel as linear_int8_kernel
from qbits.ops.linear_int8 import linear_int8_with_grad


class Int8Rows(NamedTuple):
    """What quantize_int8_rowwise returns: the value of codes[..., k] is codes[..., k] * scales[...] / 127."""

    codes: Tensor
    """int8, as the quantized tensor; 0 in outlier columns."""
    scales: Tensor
    """float32, one for each row: the largest magnitude in it that is no outlier."""
    outlier_columns: Tensor
    """int32 [K]: the columns that hold outliers, ascending, then -1; [0] without a threshold."""
    outlier_count: Tensor
    """int32 [1]: how many they are."""


class Int8Double(NamedTuple):
    """What quantize_int8_double returns: a matrix in 8 bits by rows and by columns."""

    row_codes: Tensor
    """int8, as the quantized tensor; 0 in outlier columns."""
    column_codes: Tensor
    """int8, as the quantized tensor; 0 where an outlier is."""
    row_scales: Tensor
    """float32, one for each row."""
    column_scales: Tensor
    """float32 [K]."""
    outlier_columns: Tensor
    """int32 [K]: the columns that hold outliers, ascending, then -1; [0] without a threshold."""
    outlier_count: Tensor
    """int32 [1]: how many they are."""


# So that programs of torch.export that return one can be saved.
_register_namedtuple(Int8Rows, serialized_type_name="qbits.functional.Int8Rows")
_register_namedtuple(Int8Double, serialized_type_name="qbits.functional.Int8Double")


def quantize_int8_rowwise(x: Tensor, threshold: float = 0.0) -> Int8Rows:
    """Rounds 127 x / s to an integer, ties to even, s being the largest magnitude of the row.

    A column that holds an outlier, an element |x| >= `threshold`, gets the code 0 in all rows; outliers do
    not count for s. A NaN, or an infinity that is no outlier, makes its row's scale NaN and the codes 0. No
    shape depends on the data, so nothing synchronises.

    Args:
        x: float32, bfloat16 or float16 [..., K].
        threshold: from where on an element is an outlier, finite; 0 for no outliers.

    Returns:
        Int8Rows.

    Raises:
        ValueError: the threshold or a size does not fit, or x has no dimension.
        TypeError: `x` is no tensor of these dtypes, or the threshold no number.
    """
    op = "quantize_int8_rowwise"
    check_is_tensor(op, "x", x)
    return Int8Rows(*ops.quantize_int8_rowwise(x.detach(), _as_threshold(op, threshold)))


def quantize_int8_colwise(x: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    """quantize_int8_rowwise for columns: 127 x / s rounded to an integer, s the column's largest magnitude.

    An outlier, an element |x| >= `threshold`, gets the code 0 and does not count for s; others of its column
    keep theirs. A NaN, or an infinity that is no outlier, makes its column's scale NaN and the codes 0.

    Args:
        x: float32, bfloat16 or float16 [..., K].
        threshold: from where on an element is an outlier, finite; 0 for no outliers.

    Returns:
        Codes, int8 [..., K], and scales, float32 [K].

    Raises:
        ValueError: the threshold or a size does not fit, or x has no dimension.
        TypeError: `x` is no tensor of these dtypes, or the threshold no number.
    """
    op = "quantize_int8_colwise"
    check_is_tensor(op, "x", x)
    return ops.quantize_int8_colwise(x.detach(), _as_threshold(op, threshold))


def quantize_int8_double(x: Tensor, threshold: float = 0.0) -> Int8Double:
    """quantize_int8_rowwise and quantize_int8_colwise of one tensor: bitsandbytes' int8_double_quant.

    Args, errors: as there.
    """
    op = "quantize_int8_double"
    check_is_tensor(op, "x", x)
    x, threshold = x.detach(), _as_threshold(op, threshold)
    codes, scales, columns, count = ops.quantize_int8_rowwise(x, threshold)
    column_codes, column_scales = ops.quantize_int8_colwise(x, threshold)
    return Int8Double(codes, column_codes, scales, column_scales, columns, count)


def dequantize_int8_rowwise(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(codes * scales) * (1 / 127), each product rounded to float32, then rounded once to `dtype`.

    Args:
        codes: int8 [..., K].
        scales: float32 [...].
        dtype: of the result: float32, bfloat16 or float16.

    Returns:
        `dtype`, in the shape of `codes`.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype does not fit, or an argument is no tensor.
    """
    op = "dequantize_int8_rowwise"
    for what, tensor in (("codes", codes), ("scales", scales)):
        check_is_tensor(op, what, tensor)
    _check_is_dtype(op, dtype)
    return ops.dequantize_int8_rowwise(codes, scales, dtype)


def dequantize_int8_product(
    dots: Tensor,
    row_scales: Tensor,
    column_scales: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The product of two quantized matrices from that of their codes: bitsandbytes' int8_mm_dequant.

    column_scales[n] / 127 * (row_scales[m] / 127 * dots[m, n]) + bias[n], in float32, rounded once to
    `dtype`: after `igemm` the same bits as linear_int8's without outliers.

    Args:
        dots: int32 [..., N].
        row_scales: float32 [...].
        column_scales: float32 [N].
        bias: [N] in `dtype`, or None.
        dtype: of the result: float32, bfloat16 or float16.

    Returns:
        `dtype`, in the shape of `dots`.

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype does not fit, or an argument is no tensor.
    """
    op = "dequantize_int8_product"
    for what, tensor in (("dots", dots), ("row_scales", row_scales), ("column_scales", column_scales)):
        check_is_tensor(op, what, tensor)
    if bias is not None:
        check_is_tensor(op, "bias", bias)
    _check_is_dtype(op, dtype)
    return ops.dequantize_int8_product(dots, row_scales, column_scales, bias, dtype)


def linear_int8(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None, threshold: float = 0.0
) -> Tensor:
    """x W^T + bias, x being quantized as by quantize_int8_rowwise, but for its outlier columns.

    The product of the codes is exact; that of the outlier columns and the codes of W is summed in float32.
    A NaN or an infinity in x reaches the row that holds it and no other.

    Differentiable, any number of times, in `x` and `bias`; the weight is a constant. To gradients the
    quantization of x is the identity (straight-through): that of x is grad W, W dequantized to grad's dtype.

    Args:
        x: float32, bfloat16 or float16 [..., K], of 1 to 8 dimensions.
        codes: int8 [N, K], the rows of W: bitsandbytes' CB.
        scales: float32 [N], not negative: bitsandbytes' SCB. On the CPU a negative one or a NaN raises; on
            CUDA, where looking would synchronise, it is used.
        bias: [N] in x's dtype, or None.
        threshold: from where on an element of x is an outlier, finite; 0 for no outliers. LLM.int8() takes 6.

    Returns:
        [..., N] in x's dtype.

    Raises:
        ValueError: a shape, a device, the threshold or a scale does not fit.
        TypeError: a dtype does not fit, or an argument is no tensor.
    """
    op = "linear_int8"
    for what, tensor in (("x", x), ("codes", codes), ("scales", scales)):
        check_is_tensor(op, what, tensor)
    if bias is not None:
        check_is_tensor(op, "bias", bias)
    threshold = _as_threshold(op, threshold)
    if scales.requires_grad:
        scales = scales.detach()
    if torch.compiler.is_exporting():
        return linear_int8_with_grad(x, codes, scales, bias, threshold)
    refuse_compiled_transform(op)
    if is_differentiated(x, bias):
        return _apply(_LinearInt8)(x, bias, codes, scales, threshold)
    return _product(x, codes, scales, bias, threshold)


def igemm(a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    """The product of integers a b, of a and b as they are or transposed; sums are modulo 2^32.

    They are exact for K up to 131,071. A transposed view (`b.mT`) is read where it lies, as with the flag.

    Args:
        a: int8 [M, K] or [batch, M, K]; with `transpose_a` [K, M] or [batch, K, M].
        b: int8 [K, N] or [batch, K, N], as a; with `transpose_b` [N, K] or [batch, N, K].
        transpose_a: whether the last two dimensions of `a` change places.
        transpose_b: the same of `b`.

    Returns:
        int32 [M, N] or [batch, M, N].

    Raises:
        ValueError: a shape or device does not fit.
        TypeError: a dtype does not fit, an argument is no tensor, or a flag no bool.
    """
    op = "igemm"
    for what, tensor in (("a", a), ("b", b)):
        check_is_tensor(op, what, tensor)
    for what, flag in (("transpose_a", transpose_a), ("transpose_b", transpose_b)):
        if not isinstance(flag, bool):
            raise TypeError(f"[{op}] {what}: got {flag!r}, want a bool")
    return ops.igemm(a, b, transpose_a, transpose_b)


class _LinearInt8(torch.autograd.Function):
    """Outside of the op, as that of linear_4bit: the backward pass keeps nothing but the int8 weight."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, codes: Tensor, scales: Tensor, threshold: float) -> Tensor:
        return _product(x, codes, scales, bias, threshold)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_weight(ctx, *inputs[2:4])
        ctx.out_shape = output.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, grad, ctx.needs_input_grad[1]), None, None, None


class _Dense(torch.autograd.Function):
    """x W or x W^T, W dequantized and dropped: linear in x, so the gradient is the other one of the two."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, codes: Tensor, scales: Tensor, transpose: bool) -> Tensor:
        weight = ops.dequantize_int8_rowwise(codes, scales, x.dtype)
        if transpose:
            weight = weight.t()
        if autocast_dtype(x) is None:
            return x @ weight
        with torch.autocast(x.device.type, enabled=False):
            return x @ weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_weight(ctx, *inputs[1:3])
        ctx.transpose = inputs[3]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _dense(grad, ctx.saved_tensors, not ctx.transpose), None, None, None


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
    return grad_x, None, None, grad_bias, None


torch.library.register_autograd(
    "qbits::linear_int8_with_grad", _backward_exported, setup_context=_setup_exported, lib=LIBRARY
)


def _dense(x: Tensor, weight: tuple[Tensor, Tensor], transpose: bool) -> Tensor:
    # A compiled gradient is not differentiated again, and Dynamo traces no function in a function.
    again = torch.is_grad_enabled() or forward_ad._current_level >= 0
    function = _apply(_Dense) if again and not torch.compiler.is_compiling() else _Dense.forward
    return function(x, *weight, transpose)


def _product(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    if (
        not torch.compiler.is_dynamo_compiling()
        and bypasses_dispatcher(x)
        and not (codes.is_neg() or scales.is_neg() or (bias is not None and bias.is_neg()))
    ):
        try:
            return linear_int8_kernel(x, codes, scales, bias, threshold)
        except TypeError:  # from libqbits: an error, or a tensor of a kind that only the dispatcher knows
            pass
    return ops.linear_int8(x, codes, scales, bias, threshold)


def _check_is_dtype(op: str, dtype: object) -> None:
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"[{op}] dtype: got {dtype!r}, want float32, bfloat16 or float16")


def _as_threshold(op: str, threshold: object) -> float:
    """`threshold` as a float the op can be given; torch says of another one only that its type is wrong."""
    if type(threshold) is float:
        return threshold
    if not isinstance(threshold, Real):
        raise TypeError(f"[{op}] threshold: got {threshold!r}, want a number")
    try:
        return float(threshold)
    except OverflowError:
        return -math.inf if threshold < 0 else math.inf  # which the op refuses
