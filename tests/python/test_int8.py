"""qbits.functional of LLM.int8(): rows and columns in 8 bits, and what is refused."""

import functools

import numpy as np
import pytest
import torch

import cases
import qbits.functional as F
import reference
from case_parts import THRESHOLDS
from int8_operands import K, N, make, outliers, randn


@pytest.mark.parametrize("shape", [(40,), (0, 40), (5, 40), (2, 3, 40), (2, 1, 3, 40)])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_there_and_back(shape, threshold, device):
    x = outliers(randn(*shape)).to(device)
    rows = F.quantize_int8_rowwise(x, threshold)
    assert isinstance(rows, F.Int8Rows) and rows.codes.shape == shape and rows.scales.shape == shape[:-1]
    y = F.dequantize_int8_rowwise(rows.codes, rows.scales)
    assert y.dtype == torch.float32
    found = rows.outlier_columns[: rows.outlier_count.item()].tolist()
    assert found == ([3] if threshold and x.numel() else [])
    x[..., found] = 0.0
    # Half a step of 2 / 254, and what rounding adds.
    assert ((y - x).abs() <= rows.scales[..., None] * (0.5 / 127 + 1e-6)).all()
    for dtype in cases.DTYPES:
        assert torch.equal(F.dequantize_int8_rowwise(rows.codes, rows.scales, dtype), y.to(dtype))


@pytest.mark.parametrize("shape", [(40,), (0, 40), (5, 0), (5, 40), (2, 1, 3, 40)])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_rows_and_columns_at_once(shape, threshold, device):
    x = (outliers(randn(*shape)) if shape[-1] else randn(*shape)).to(device)
    x.requires_grad_()  # no part of it
    double = F.quantize_int8_double(x, threshold)
    assert isinstance(double, F.Int8Double)
    rows = F.quantize_int8_rowwise(x, threshold)
    assert torch.equal(double.row_codes, rows.codes) and torch.equal(double.row_scales, rows.scales)
    assert torch.equal(double.outlier_columns, rows.outlier_columns)
    assert torch.equal(double.outlier_count, rows.outlier_count)
    codes, scales = F.quantize_int8_colwise(x, threshold)
    assert torch.equal(double.column_codes, codes) and torch.equal(double.column_scales, scales)
    assert codes.shape == shape and scales.shape == shape[-1:]
    x = x.detach()
    kept = x.masked_fill(x.abs() >= threshold, 0.0) if threshold else x
    assert ((codes * scales / 127 - kept).abs() <= scales * (0.5 / 127 + 1e-6)).all()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-7, 1e4, 1e30, 1e34])
def test_rows_of_any_magnitude(dtype, scale, device):
    codes, scales, _, _ = make()
    x = (randn(5, K) * scale).clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    for threshold in (0.0, max(scale, torch.finfo(torch.float32).smallest_normal)):
        rows = F.quantize_int8_rowwise(x.to(device), threshold)
        want, want_scales, columns = reference.quantize_int8_rowwise(x, threshold)
        assert torch.equal(rows.codes.cpu(), want) and torch.equal(rows.scales.cpu(), want_scales)
        assert rows.outlier_columns[: rows.outlier_count.item()].tolist() == columns.tolist()
        out = F.linear_int8(x.to(device), codes.to(device), scales.to(device), None, threshold).cpu()
        exact, bound = reference.linear_int8(x, codes, scales, None, threshold)
        near = (out.double() - exact.double()).abs() <= bound
        assert (near | (out == exact.to(dtype))).all()  # what float16 cannot hold is infinite in both


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("threshold", [6.0, 6.01, 1.2e-38, 3e38, float(np.nextafter(np.float32(6), 7))])
def test_an_outlier_begins_at_the_threshold_as_a_float32(dtype, threshold, device):
    near = torch.tensor(threshold, dtype=dtype)
    near = near if near.isfinite() else torch.tensor(torch.finfo(dtype).max, dtype=dtype)
    around = [near.nextafter(torch.tensor(0, dtype=dtype)), near, near.nextafter(near * 0 + float("inf"))]
    x = torch.stack([sign * value for value in around for sign in (1, -1)])[None].to(device)
    rows = F.quantize_int8_rowwise(x, threshold)
    want = [i for i, value in enumerate(x[0].tolist()) if abs(value) >= np.float32(threshold)]
    assert rows.outlier_columns[: rows.outlier_count.item()].tolist() == want
    inliers = [abs(value) for i, value in enumerate(x[0].tolist()) if i not in want]
    assert rows.scales.item() == max(inliers, default=0.0)


def test_an_exported_program_that_returns_rows_can_be_saved(tmp_path):
    class Quantize(torch.nn.Module):
        def forward(self, x):
            return F.quantize_int8_rowwise(x, 6.0)

    x = outliers(randn(5, K))
    torch.export.save(torch.export.export(Quantize(), (x,)), tmp_path / "rows.pt2")
    rows = torch.export.load(tmp_path / "rows.pt2").module()(x)
    assert torch.equal(rows.codes, F.quantize_int8_rowwise(x, 6.0).codes)


def test_refusals_say_what_the_product_takes():
    codes, scales, bias, _ = make()
    with pytest.raises(TypeError, match=r"x: got float64, want float32, bfloat16, float16$"):
        F.linear_int8(randn(2, K).double(), codes, scales)
    with pytest.raises(ValueError, match=r"bias: got .*, want 1 dimension"):
        F.linear_int8(randn(2, K), codes, scales, bias[None])
    with pytest.raises(TypeError, match=r"dtype: got 'float32', want torch.float32, torch.bfloat16 or"):
        F.dequantize_int8_rowwise(codes, scales, "float32")
    with pytest.raises(TypeError, match=r"dtype: got None, want torch.float32, torch.bfloat16 or"):
        F.dequantize_int8_product(torch.zeros(N, N, dtype=torch.int32), scales, scales, dtype=None)
    for bad in (scales[:, None], scales[None]):
        with pytest.raises(ValueError, match=r"weight scales: got .*, want 1 dimension"):
            F.linear_int8(randn(2, K), codes, bad)
        with pytest.raises(ValueError, match=r"scales: got .*, want the shape \[24\]"):
            F.dequantize_int8_rowwise(codes, bad)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_steps_of_the_product(dtype, device):
    codes, scales, bias, _ = make(device, dtype)
    x = randn(2, 5, K).to(device, dtype)
    rows = F.quantize_int8_rowwise(x)
    dots = F.igemm(rows.codes, codes.mT.expand(2, K, N))
    out = F.dequantize_int8_product(dots, rows.scales, scales, bias, dtype)
    assert torch.equal(out, F.linear_int8(x, codes, scales, bias))


@pytest.mark.parametrize("bad", [None, [1.0], 3])
def test_what_is_no_tensor_is_a_type_error_that_names_it(bad):
    codes, scales, _, _ = make()
    x, dots = randn(5, K), torch.zeros(N, N, dtype=torch.int32)
    calls = {
        "[quantize_int8_rowwise] x": lambda: F.quantize_int8_rowwise(bad),
        "[quantize_int8_colwise] x": lambda: F.quantize_int8_colwise(bad),
        "[quantize_int8_double] x": lambda: F.quantize_int8_double(bad),
        "[dequantize_int8_rowwise] codes": lambda: F.dequantize_int8_rowwise(bad, scales),
        "[dequantize_int8_rowwise] scales": lambda: F.dequantize_int8_rowwise(codes, bad),
        "[dequantize_int8_product] dots": lambda: F.dequantize_int8_product(bad, scales, scales),
        "[dequantize_int8_product] row_scales": lambda: F.dequantize_int8_product(dots, bad, scales),
        "[dequantize_int8_product] column_scales": lambda: F.dequantize_int8_product(dots, scales, bad),
        "[linear_int8] x": lambda: F.linear_int8(bad, codes, scales),
        "[linear_int8] codes": lambda: F.linear_int8(x, bad, scales),
        "[linear_int8] scales": lambda: F.linear_int8(x, codes, bad),
    }
    if bad is not None:
        calls["[dequantize_int8_product] bias"] = lambda: F.dequantize_int8_product(dots, scales, scales, bad)
        calls["[linear_int8] bias"] = lambda: F.linear_int8(x, codes, scales, bad)
    for where, call in calls.items():
        with pytest.raises(TypeError) as raised:
            call()
        assert str(raised.value) == f"{where}: got {type(bad).__name__}, want a tensor"


def test_refusals_of_a_threshold():
    codes, scales, _, _ = make()
    x = randn(5, K)
    quantizers = ("quantize_int8_rowwise", "quantize_int8_colwise", "quantize_int8_double")
    calls = {op: functools.partial(getattr(F, op), x) for op in quantizers}
    calls["linear_int8"] = lambda t: F.linear_int8(x, codes, scales, None, t)
    for op, call in calls.items():
        call(6), call(0), call(np.float32(6))
        for bad in ("6", None, 1j):
            with pytest.raises(TypeError, match=rf"\[{op}\] threshold: got .*, want a number"):
                call(bad)
        for bad in (-1, float("nan"), float("inf"), 1e39, 10**400):
            # The double quantizer is two ops, of which the first refuses.
            name = "quantize_int8_rowwise" if op == "quantize_int8_double" else op
            with pytest.raises(ValueError, match=rf"\[{name}\] threshold: got .*, want 0 or a positive"):
                call(bad)
