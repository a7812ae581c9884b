"""Embedding8bit: lookups equal those in the dequantized table, bit for bit."""

import pytest
import torch
from torch import nn

import qbits
from case_parts import DTYPES
from qbits.functional import embedding_int8
from qbits.nn import Embedding8bit


@pytest.mark.parametrize("dim", [64, 33, 1, 0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lookup(dim, dtype):
    torch.manual_seed(0)
    layer = Embedding8bit.from_float(nn.Embedding(50, dim, padding_idx=0, dtype=dtype))
    assert layer.padding_idx == 0 and layer.weight.shape == (50, dim)
    for indices in (
        torch.tensor([[0, 49, 7], [7, 7, 3]]),
        torch.tensor(4),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(2, 0, 3, dtype=torch.int64),
    ):
        y = layer(indices)
        assert y.shape == (*indices.shape, dim) and y.dtype == dtype
        assert torch.equal(y, layer.dequantize()[indices])
        assert torch.equal(layer(indices.int()), y)
    assert torch.equal(layer(torch.tensor([0])), torch.zeros(1, dim, dtype=dtype))


def test_only_the_rows_looked_up_are_dequantized(monkeypatch):
    layer, shapes = Embedding8bit(1000, 64), []
    dequantize = qbits._C.dequantize_int8_rowwise
    monkeypatch.setattr(
        qbits._C,
        "dequantize_int8_rowwise",
        lambda codes, *rest: shapes.append(tuple(codes.shape)) or dequantize(codes, *rest),
    )
    layer(torch.tensor([[1, 2], [3, 999]]))
    nn.functional.embedding(torch.tensor([5]), layer.weight)
    assert shapes == [(4, 64), (1, 64)]


def test_compute_dtype_is_that_of_the_result():
    layer = Embedding8bit(50, 64, compute_dtype=torch.bfloat16)
    y = layer(torch.tensor([3]))
    assert y.dtype == torch.bfloat16 and torch.equal(y, layer.dequantize(torch.bfloat16)[3:4])
    assert torch.equal(embedding_int8(torch.tensor([3]), layer.weight), layer.dequantize()[3:4])


def test_indices_there_are_not():
    layer = Embedding8bit(50, 64)
    for index in (50, -1, 2**40):
        with pytest.raises(IndexError, match=rf"\[embedding_int8\] index: got {index} at 1, want 0 to 49"):
            layer(torch.tensor([0, index]))
    with pytest.raises(IndexError, match=r"\[embedding_int8\] index"):
        Embedding8bit(0, 64)(torch.tensor([0]))
    # Where nothing looks at them: the same rows, and NaN.
    batch = torch.tensor([[0, 50], [-1, 3]])
    y = torch.func.vmap(layer)(batch)
    assert torch.equal(y[0, 0], layer(torch.tensor(0))) and torch.equal(y[1, 1], layer(torch.tensor(3)))
    assert y[0, 1].isnan().all() and y[1, 0].isnan().all()


def test_refusals():
    layer = Embedding8bit(50, 64)
    with pytest.raises(TypeError, match=r"\[embedding_int8\] indices: got float32, want int64, int32"):
        layer(torch.tensor([0.5]))
    with pytest.raises(TypeError, match=r"\[embedding_int8\] indices: got list, want a tensor"):
        layer([1, 2])
    with pytest.raises(ValueError, match=r"\[embedding_int8\] indices: got .* on meta, want a tensor on cpu"):
        layer(torch.zeros(3, dtype=torch.int64, device="meta"))
    with pytest.raises(TypeError, match=r"\[embedding_int8\] dtype: got float64"):
        embedding_int8(torch.tensor([0]), layer.weight, torch.float64)
    with pytest.raises(TypeError, match=r"\[embedding_int8\] weight: got Tensor, want a 2-D QuantizedTensor"):
        embedding_int8(torch.tensor([0]), torch.randn(4, 4))
    with pytest.raises(ValueError, match=r"\[embedding_int8\] weight: got QuantizedTensor\(nf4"):
        embedding_int8(torch.tensor([0]), qbits.quantize(torch.randn(4, 64)))
    with pytest.raises(ValueError, match=r"\[Embedding8bit.from_float\] max_norm"):
        Embedding8bit.from_float(nn.Embedding(5, 64, max_norm=1.0))
    with pytest.raises(TypeError, match=r"\[Embedding8bit.from_float\] module: got Linear"):
        Embedding8bit.from_float(nn.Linear(5, 64))
    with pytest.raises(ValueError, match=r"\[Embedding8bit\] format: got 'nf4', want one of int8"):
        Embedding8bit(50, 64, config="nf4")


def test_moving_and_loading():
    layer, again = Embedding8bit(50, 64), Embedding8bit(50, 64)
    assert list(layer.state_dict()) == ["weight", "SCB", "weight_format"]
    again.load_state_dict(layer.state_dict())
    indices = torch.arange(50)
    assert torch.equal(again(indices), layer(indices))
    dense = nn.Embedding(50, 64)
    again.load_state_dict(dense.state_dict())
    assert torch.equal(again.weight.codes, qbits.quantize(dense.weight.detach(), "int8").codes)
    assert layer.to(torch.bfloat16)(indices).dtype == torch.bfloat16
    assert layer.to("meta")(indices.to("meta")).is_meta


def test_from_pretrained_is_that_of_embedding():
    table = torch.randn(50, 64)
    layer = Embedding8bit.from_pretrained(table, padding_idx=3)
    assert torch.equal(layer.weight.codes, qbits.quantize(table, "int8").codes) and layer.padding_idx == 3


def test_bags_see_the_dequantized_table():
    layer, bags = Embedding8bit(50, 64), torch.tensor([[1, 2], [3, 49]])
    want = nn.functional.embedding_bag(bags, layer.dequantize())
    assert torch.equal(nn.functional.embedding_bag(bags, layer.weight), want)


@pytest.mark.gpu
def test_on_the_gpu(gpu):
    layer = Embedding8bit(50, 64)
    indices = torch.tensor([[0, 49], [7, 3]])
    want = layer(indices)
    there = layer.to(gpu)
    assert torch.equal(there(indices.to(gpu)).cpu(), want)
    assert there(torch.tensor([50, -1], device=gpu)).isnan().all()
    assert there(torch.tensor([1], device=gpu)).isfinite().all()
