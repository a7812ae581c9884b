"""LLM.int8() (Dettmers et al., arXiv 2208.07339): rows and columns in 8 bits, and products of integers.

Its product, of floats, is in linear_int8.py.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from qbits import ops
from qbits.ops._library import check_is_tensor


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
    return Int8Rows(*ops.quantize_int8_rowwise(x.detach(), as_threshold(op, threshold)))


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
    return ops.quantize_int8_colwise(x.detach(), as_threshold(op, threshold))


def quantize_int8_double(x: Tensor, threshold: float = 0.0) -> Int8Double:
    """quantize_int8_rowwise and quantize_int8_colwise of one tensor: bitsandbytes' int8_double_quant.

    Args, errors: as there.
    """
    op = "quantize_int8_double"
    check_is_tensor(op, "x", x)
    x, threshold = x.detach(), as_threshold(op, threshold)
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


def _check_is_dtype(op: str, dtype: object) -> None:
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"[{op}] dtype: got {dtype!r}, want torch.float32, torch.bfloat16 or torch.float16")


def as_threshold(op: str, threshold: object) -> float:
    """`threshold` as a float the op can be given; torch says of another one only that its type is wrong."""
    if type(threshold) is float:
        return threshold
    if not isinstance(threshold, Real):
        raise TypeError(f"[{op}] threshold: got {threshold!r}, want a number")
    try:
        return float(threshold)
    except OverflowError:
        return -math.inf if threshold < 0 else math.inf  # which the op refuses
