"""The ops of LLM.int8() as in test_ops_values.py."""

import math

import pytest
import torch

import cases
import reference
from case_parts import THRESHOLDS
from qbits import ops
from test_ops_values import assert_same_bits, on_cpu, run


@pytest.mark.parametrize("case", cases.cases("quantize_int8_rowwise"), ids=str)
def test_quantize_int8_rowwise(case, device):
    (x, threshold), (codes, scales, columns, count) = run(case, device)
    want, want_scales, want_columns = reference.quantize_int8_rowwise(x, threshold)
    assert codes.dtype == torch.int8 and torch.equal(codes, want)
    assert_same_bits(scales, want_scales)
    assert (columns.dtype, columns.shape) == (torch.int32, (x.shape[-1] if threshold else 0,))
    assert count.dtype == torch.int32 and count.tolist() == [len(want_columns)]
    assert torch.equal(columns[: len(want_columns)].long(), want_columns)
    assert (columns[len(want_columns) :] == -1).all()
    assert len(want_columns) > 0 or not (threshold and x.numel() and x.shape[-1] > 3)


@pytest.mark.parametrize("case", cases.cases("quantize_int8_colwise"), ids=str)
def test_quantize_int8_colwise(case, device):
    arguments, (codes, scales) = run(case, device)
    want, want_scales = reference.quantize_int8_colwise(*arguments)
    assert codes.dtype == torch.int8 and torch.equal(codes, want)
    assert_same_bits(scales, want_scales)


@pytest.mark.parametrize("case", cases.cases("dequantize_int8_rowwise"), ids=str)
def test_dequantize_int8_rowwise(case, device):
    arguments, (out,) = run(case, device)
    assert_same_bits(out, reference.dequantize_int8_rowwise(*arguments))


@pytest.mark.parametrize("case", cases.cases("linear_int8"), ids=str)
def test_linear_int8(case, device):
    arguments, (out,) = run(case, device)
    want, bound = reference.linear_int8(*arguments)
    assert out.shape == (*case.lead, case.shape[0]) and out.dtype == case.dtype
    assert ((out.double() - want.double()).abs() <= bound).all()  # 0 where no column is an outlier


@pytest.mark.parametrize("case", cases.cases("linear_int8_weight_only"), ids=str)
def test_linear_int8_weight_only(case, device):
    arguments, (out,) = run(case, device)
    want, bound = reference.linear_int8_weight_only(*arguments)
    assert out.shape == (*case.lead, case.shape[0]) and out.dtype == case.dtype
    assert ((out.double() - want).abs() <= bound).all()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("m, k", [(1, 512), (3, 1040), (40, 528), (5, 77)])
def test_every_code_times_x_as_it_is(dtype, m, k, device):
    # Sums of a few integers are exact, whatever their order and whoever rounds.
    codes = torch.zeros(256, k, dtype=torch.int8)
    codes[torch.arange(256), torch.arange(256) * 7 % k] = torch.arange(-128, 128, dtype=torch.int8)
    x = (torch.arange(m * k).reshape(m, k) % 15 - 7).to(dtype)
    out = ops.linear_int8_weight_only(
        x.to(device), codes.to(device), torch.full((256,), 127.0, device=device)
    )
    assert_same_bits(out.cpu(), (x.double() @ codes.double().T).to(dtype))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("m, k", [(3, 300), (9, 512), (40, 528)])
def test_a_bad_value_spoils_its_row_of_a_weight_only_product(dtype, m, k, bad, device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(m, k, generator=generator).to(dtype)
    weight = [t.to(device) for t in ops.quantize_int8_rowwise(torch.randn(65, k, generator=generator))[:2]]
    want = ops.linear_int8_weight_only(x.to(device), *weight)
    x[2, 7] = bad
    out = ops.linear_int8_weight_only(x.to(device), *weight)
    others = [i for i in range(m) if i != 2]
    assert not out[2].isfinite().any() and torch.equal(out[others], want[others])


@pytest.mark.parametrize("case", cases.cases("igemm"), ids=str)
def test_igemm(case, device):
    arguments, (out,) = run(case, device)
    assert out.dtype == torch.int32 and torch.equal(out, reference.igemm(*arguments))


@pytest.mark.parametrize("case", cases.cases("dequantize_int8_product"), ids=str)
def test_dequantize_int8_product(case, device):
    arguments, (out,) = run(case, device)
    assert_same_bits(out, reference.dequantize_int8_product(*arguments))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_linear_int8_is_its_three_steps(dtype, bias, device):
    case = cases.Case("linear_int8", (33, 257), dtype, lead=(2, 3), bias=bias)
    x, codes, scales, bias, _ = case.arguments(device)
    x_codes, x_scales, _, _ = ops.quantize_int8_rowwise(x)
    dots = ops.igemm(x_codes.flatten(0, 1), codes, False, True).view(2, 3, 33)
    out = ops.dequantize_int8_product(dots, x_scales, scales, bias, dtype)
    assert_same_bits(out.cpu(), ops.linear_int8(x, codes, scales, bias).cpu())


@pytest.mark.parametrize("k", [131_071, 131_072, 300_001])
def test_integer_sums_are_modulo_32_bits(k, device):
    a = torch.full((2, k), -128, dtype=torch.int8, device=device)
    b = torch.full((3, k), -128, dtype=torch.int8, device=device)
    a[1] = b[1] = 127
    out = ops.igemm(a, b, False, True).cpu()
    assert torch.equal(out, reference.igemm(a.cpu(), b.cpu(), False, True))
    assert (out[0, 0].item() == k << 14) == (k <= 131_071)


def test_int8_codes_and_outliers_by_hand(device):
    x = torch.tensor([[8.0, 4.0, -4.0, 2.0, 6.0, 0.25], [0.0] * 6, [-5.75, 2.5, 0.0, 0.0, 0.0, 5.5]])
    codes, scales, columns, count = ops.quantize_int8_rowwise(x.to(device))
    # 63.5, the one tie there is, goes to 64.
    assert codes.tolist() == [[127, 64, -64, 32, 95, 4], [0] * 6, [-127, 55, 0, 0, 0, 121]]
    assert scales.tolist() == [8, 0, 5.75] and len(columns) == 0 and count.tolist() == [0]
    codes, scales, columns, count = ops.quantize_int8_rowwise(x.to(device), 6.0)
    assert columns.tolist() == [0, 4, -1, -1, -1, -1] and count.tolist() == [2]
    assert scales.tolist() == [4, 0, 5.75]  # of what is below 6, be it in such a column or not
    assert codes.tolist() == [[0, 127, -127, 64, 0, 8], [0] * 6, [0, 55, 0, 0, 0, 121]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_bad_value_spoils_its_int8_row_and_no_other(dtype, threshold, bad, device):
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)).to(dtype).to(device)
    spoilt = x.clone()
    spoilt[2, 7] = bad
    is_outlier = threshold and math.isinf(bad)
    codes, scales, _, count = ops.quantize_int8_rowwise(spoilt, threshold)
    assert scales.isnan().tolist() == [False, False, not is_outlier, False, False]
    assert count.item() == bool(is_outlier)
    if not is_outlier:
        assert (codes[2] == 0).all()
        assert ops.dequantize_int8_rowwise(codes, scales, dtype)[2].isnan().all()
    weight = ops.quantize_int8_rowwise(torch.randn(33, 300, generator=torch.Generator().manual_seed(1)))
    weight = [t.to(device) for t in weight[:2]]
    out = ops.linear_int8(spoilt, *weight, None, threshold)
    assert not out[2].isfinite().any()
    others = [0, 1, 3, 4]
    if is_outlier:  # its column is one in every row, at x's own precision
        assert out[others].isfinite().all()
    else:
        assert torch.equal(out[others], ops.linear_int8(x, *weight, None, threshold)[others])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_bad_value_spoils_its_int8_column_and_no_other(dtype, threshold, bad, device):
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)).to(dtype).to(device)
    spoilt = x.clone()
    spoilt[7, 2] = bad
    codes, scales = ops.quantize_int8_colwise(spoilt, threshold)
    if threshold and math.isinf(bad):  # an outlier
        spoilt[7, 2] = 0.0
        want, want_scales = ops.quantize_int8_colwise(spoilt, threshold)
        assert torch.equal(codes, want) and torch.equal(scales, want_scales)
    else:
        want, want_scales = ops.quantize_int8_colwise(x, threshold)
        assert scales.isnan().tolist() == [False, False, True, False, False] and (codes[:, 2] == 0).all()
        others = [0, 1, 3, 4]
        assert torch.equal(codes[:, others], want[:, others])
        assert torch.equal(scales[others], want_scales[others])


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_int8_rows_do_not_depend_on_their_number(threshold, device):
    case = cases.Case("linear_int8", (33, 257), lead=(130,), bias=True, threshold=threshold)
    x, *rest = case.arguments(device)
    x[0, 3] = 50.0  # the one row that must stay for the others to have the same outliers
    x[1:, 3] = 0.0
    x[:, 4:].clamp_(-5, 5)
    whole = ops.linear_int8(x, *rest)
    for rows in (1, 2, 3, 17, 64):
        assert torch.equal(ops.linear_int8(x[:rows], *rest), whole[:rows])


def test_int8_depth_beyond_exact_float32(device):
    k = (1 << 17) + 19  # sums of 127 * 127 leave 32 bits
    x = torch.ones(2, k, device=device)
    codes = torch.full((3, k), 127, dtype=torch.int8, device=device)
    codes[1] = -127
    codes[2, ::2] = -126
    args = (codes, torch.full((3,), 0.5, device=device), None, 0.0)
    want, _ = reference.linear_int8(*on_cpu((x, *args)))
    assert_same_bits(ops.linear_int8(x, *args).cpu(), want)
