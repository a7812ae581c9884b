"""Every op, on every device and instruction set, against the reference: bits where bits are defined."""

import itertools
import math

import pytest
import torch

import cases
import reference
from qbits import ops
from qbits.formats import FORMATS, NESTED_BLOCK_SIZE


def on_cpu(values):
    return tuple(t.cpu() if isinstance(t, torch.Tensor) else t for t in values)


def run(case, device):
    """Arguments and result of a case, as CPU tensors."""
    arguments = case.arguments(device)
    result = getattr(ops, case.op)(*arguments)
    result = result if isinstance(result, tuple) else (result,)
    assert all(t.device.type == device.type and t.is_contiguous() for t in result)
    return on_cpu(arguments), on_cpu(result)


def assert_same_bits(got, want):
    assert got.dtype == want.dtype and got.shape == want.shape
    integers = {4: torch.int32, 2: torch.int16, 1: torch.uint8}[got.element_size()]
    different = got.view(integers) != want.view(integers)
    # Any NaN is as good as another.
    different &= ~(got.isnan() & want.isnan())
    assert not different.any(), (
        f"{different.sum()} of {got.numel()} differ: {got[different][:4]}, want {want[different][:4]}"
    )


def assert_codes(codes, want, row, numel):
    """The same values, and the code of zero in a nibble that belongs to no element."""
    got, tail = reference.unpack(codes, numel) if row.bits == 4 else (codes.reshape(-1).long(), codes[:0])
    if row.coding == "codebook":
        values = torch.tensor(row.codebook)
        assert_same_bits(values[got].abs(), values[want].abs())
        assert (values[tail.long()] == 0).all()
        got, want = values[got].sign(), values[want].sign()
    assert torch.equal(got, want)


@pytest.mark.parametrize("case", cases.cases("quantize_4bit"), ids=str)
def test_quantize_4bit(case, device):
    (x, *_), (codes, absmax) = run(case, device)
    row = case.row
    want, want_absmax = reference.quantize_codebook(x, torch.tensor(row.codebook), row.ties, case.block_size)
    assert codes.dtype == torch.uint8 and codes.shape == ((x.numel() + 1) // 2,)
    assert_same_bits(absmax, want_absmax)
    assert_codes(codes, want, row, x.numel())


@pytest.mark.parametrize("case", cases.cases("dequantize_4bit"), ids=str)
def test_dequantize_4bit(case, device):
    arguments, (out,) = run(case, device)
    assert_same_bits(out, reference.dequantize_4bit(*arguments))


@pytest.mark.parametrize("case", cases.cases("quantize_absmax"), ids=str)
def test_quantize_absmax(case, device):
    (absmax, code), (values, nested_absmax, offset) = run(case, device)
    mean = absmax.double().mean().float() if absmax.numel() else torch.tensor(0.0)
    torch.testing.assert_close(offset, mean, rtol=2.0**-23, atol=0)
    want, want_absmax = reference.quantize_codebook(absmax - offset, code, "even", NESTED_BLOCK_SIZE)
    assert_same_bits(nested_absmax, want_absmax)
    assert torch.equal(values.long(), want)


@pytest.mark.parametrize("case", cases.cases("dequantize_absmax"), ids=str)
def test_dequantize_absmax(case, device):
    arguments, (out,) = run(case, device)
    assert_same_bits(out, reference.dequantize_absmax(*arguments))


@pytest.mark.parametrize("case", cases.cases("quantize_affine"), ids=str)
def test_quantize_affine(case, device):
    (x, *rest), (codes, scales, zeros) = run(case, device)
    want, want_scales, want_zeros = reference.quantize_affine(x, *rest)
    assert_same_bits(scales, want_scales)
    assert_same_bits(zeros, want_zeros)
    assert_codes(codes, want, case.row, x.numel())


@pytest.mark.parametrize("case", cases.cases("dequantize_affine"), ids=str)
def test_dequantize_affine(case, device):
    arguments, (out,) = run(case, device)
    assert_same_bits(out, reference.dequantize_affine(*arguments))


@pytest.mark.parametrize("case", cases.cases("quantize_blockwise"), ids=str)
def test_quantize_blockwise(case, device):
    (x, code, block_size), (codes, absmax) = run(case, device)
    want, want_absmax = reference.quantize_codebook(x, code, "even", block_size)
    assert codes.shape == x.shape
    assert_same_bits(absmax, want_absmax)
    assert_same_bits(code[codes.reshape(-1).long()], code[want])


@pytest.mark.parametrize("case", cases.cases("dequantize_blockwise"), ids=str)
def test_dequantize_blockwise(case, device):
    arguments, (out,) = run(case, device)
    assert_same_bits(out, reference.dequantize_blockwise(*arguments))


@pytest.mark.parametrize("case", cases.cases("estimate_quantiles"), ids=str)
def test_estimate_quantiles(case, device):
    (x, count, offset), (quantiles,) = run(case, device)
    ranks = (
        offset + torch.arange(count) * (1 - 2 * offset) / max(count - 1, 1)
        if count > 1
        else torch.tensor([0.5])
    )
    values = x.float().flatten().sort().values
    below = torch.searchsorted(values, quantiles, right=False) / values.numel()
    up_to = torch.searchsorted(values, quantiles, right=True) / values.numel()
    # The value's own ranks must come within half a percent; one element is the finest step there is.
    slack = 0.005 + 1 / values.numel()
    assert (quantiles.diff() >= 0).all()
    assert ((below - slack <= ranks) & (ranks <= up_to + slack)).all()


@pytest.mark.parametrize("case", cases.cases("linear_4bit"), ids=str)
def test_linear_4bit(case, device):
    (x, codes, scales, bias, *weight), (out,) = run(case, device)
    want, bound = reference.product(x, reference.dequantize_weight(codes, scales, *weight), bias)
    assert out.shape == (*case.lead, case.shape[0]) and out.dtype == x.dtype
    assert ((out.double() - want).abs() <= bound).all()


@pytest.mark.parametrize("case", cases.cases("linear_4bit_grad_x"), ids=str)
def test_linear_4bit_grad_x(case, device):
    (grad, *weight), (out,) = run(case, device)
    want, bound = reference.product(grad, reference.dequantize_weight(*weight).T)
    assert out.shape == (*case.lead, case.shape[1]) and out.dtype == grad.dtype
    assert ((out.double() - want).abs() <= bound).all()


def expert_weights(case, offsets, weight):
    """Each expert's rows of x, and its part of the dense weight."""
    codes, scales, format, block_size, n, k, *rest = weight
    dense = reference.dequantize_weight(codes, scales, format, block_size, case.experts * n, k, *rest)
    rows = [slice(*pair) for pair in itertools.pairwise(offsets.tolist())]
    return zip(rows, dense.reshape(case.experts, n, k), strict=True)


@pytest.mark.parametrize("case", cases.cases("grouped_linear_4bit"), ids=str)
def test_grouped_linear_4bit(case, device):
    (x, offsets, *weight, bias, zeros, nested_absmax, nested_code, offset), (out,) = run(case, device)
    assert out.shape == (*case.lead, case.shape[0]) and out.dtype == x.dtype
    weight = (*weight, zeros, nested_absmax, nested_code, offset)
    for e, (rows, dense) in enumerate(expert_weights(case, offsets, weight)):
        want, bound = reference.product(x[rows], dense, None if bias is None else bias[e])
        assert ((out[rows].double() - want).abs() <= bound).all(), e


@pytest.mark.parametrize("case", cases.cases("grouped_linear_4bit_grad_x"), ids=str)
def test_grouped_linear_4bit_grad_x(case, device):
    (grad, offsets, *weight), (out,) = run(case, device)
    assert out.shape == (*case.lead, case.shape[1]) and out.dtype == grad.dtype
    for e, (rows, dense) in enumerate(expert_weights(case, offsets, weight)):
        want, bound = reference.product(grad[rows], dense.T)
        assert ((out[rows].double() - want).abs() <= bound).all(), e


@pytest.mark.parametrize("case", cases.cases("embedding_4bit"), ids=str)
def test_embedding_4bit(case, device):
    (indices, codes, scales, format, block_size, n, k, dtype, *rest), (out,) = run(case, device)
    dense = reference.dequantize_weight(codes, scales, format, block_size, n, k, *rest)
    assert_same_bits(out, dense[indices].to(dtype) if n else out)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("format", [row.name for row in cases.formats_of("quantize_4bit")])
def test_a_bad_value_spoils_its_block_and_no_other(format, bad, device):
    x = cases.random((3, 64), torch.float32, torch.Generator().manual_seed(0)).to(device)
    x[1, 5] = bad
    codes, absmax = ops.quantize_4bit(x, format, 64)
    assert absmax.isnan().tolist() == [False, True, False]
    out = ops.dequantize_4bit(codes, absmax, format, 64, x.shape, x.dtype)
    assert out[1].isnan().all() and not out[[0, 2]].isnan().any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("format", [row.name for row in cases.formats_of("quantize_affine")])
def test_a_bad_value_spoils_its_group_and_no_other(format, bad, device):
    x = cases.random((3, 64), torch.float32, torch.Generator().manual_seed(0)).to(device)
    x[1, 5] = bad
    quantized = ops.quantize_affine(x, format, 32, torch.float32)
    out = ops.dequantize_affine(*quantized, format, 32, x.shape, x.dtype)
    assert out[1, :32].isnan().all() and not out[1, 32:].isnan().any() and not out[[0, 2]].isnan().any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_value_spoils_its_8_bit_block(bad, device):
    x = cases.random((3, 64), torch.float32, torch.Generator().manual_seed(0)).to(device)
    x[1, 5] = bad
    code = cases.code_of("dynamic").to(device)
    out = ops.dequantize_blockwise(*ops.quantize_blockwise(x, code, 64), code, 64, torch.float32)
    assert out[1].isnan().all() and not out[[0, 2]].isnan().any()


def test_a_bad_scale_spoils_all_double_quantized_ones(device):
    absmax = torch.rand(600, device=device)
    absmax[300] = math.nan
    code = cases.code_of("dynamic").to(device)
    values, nested_absmax, offset = ops.quantize_absmax(absmax, code)
    assert offset.isnan()
    assert ops.dequantize_absmax(values, nested_absmax, code, offset).isnan().all()


@pytest.mark.parametrize("format", [row.name for row in cases.formats_of("linear_4bit")])
def test_zeros_come_back_as_zeros(format, device):
    x = torch.zeros(5, 64, device=device)
    x[2] = torch.linspace(-1, 3, 64)
    x[2, 7] = 0.0
    if FORMATS[format].coding == "affine":
        out = ops.dequantize_affine(
            *ops.quantize_affine(x, format, 64, x.dtype), format, 64, x.shape, x.dtype
        )
    else:
        out = ops.dequantize_4bit(*ops.quantize_4bit(x, format, 64), format, 64, x.shape, x.dtype)
    assert (out[[0, 1, 3, 4]] == 0).all() and out[2, 7] == 0


def test_offsets_without_sense(device):
    codes, absmax = ops.quantize_4bit(torch.randn(3 * 8, 64, device=device), "nf4", 64)
    for bad in ([0, 2, 1, 4], [-1, 2, 3, 4], [0, 2, 3, 5], [0, 2**31 - 1, -(2**31), 7]):
        x, offsets = torch.randn(4, 64, device=device), torch.tensor(bad, dtype=torch.int32, device=device)
        if device.type == "cpu":
            with pytest.raises(ValueError, match=r"\[grouped_linear_4bit\] offsets: got .* at index "):
                ops.grouped_linear_4bit(x, offsets, codes, absmax, "nf4", 64, 8, 64)
        else:
            assert ops.grouped_linear_4bit(x, offsets, codes, absmax, "nf4", 64, 8, 64).shape == (4, 8)
            torch.cuda.synchronize()


def test_an_index_outside_the_table(device):
    codes, absmax = ops.quantize_4bit(torch.randn(8, 64, device=device), "nf4", 64)
    for bad in (-1, 8, 2**40):
        indices = torch.tensor([0, bad, 7], device=device)
        if device.type == "cpu":
            with pytest.raises(IndexError, match=r"\[embedding_4bit\] "):
                ops.embedding_4bit(indices, codes, absmax, "nf4", 64, 8, 64, torch.float32)
        else:
            out = ops.embedding_4bit(indices, codes, absmax, "nf4", 64, 8, 64, torch.float32)
            assert out.isnan().any(1).tolist() == [False, True, False]
