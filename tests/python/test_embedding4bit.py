"""Embedding4bit: lookups equal those in the dequantized table, bit for bit."""

import pytest
import torch
from torch import nn

import qbits
from qbits.functional import embedding_4bit
from qbits.nn import Embedding4bit

OPTIONS = [{}, {"double_quant": True}, {"format": "fp4", "block_size": 32}, {"format": "int4"}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dim", [64, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lookup(options, dim, dtype):
    torch.manual_seed(0)
    embedding = nn.Embedding(50, dim, padding_idx=0, dtype=dtype)
    layer = Embedding4bit.from_float(embedding, qbits.QuantizeConfig(**options))
    assert layer.padding_idx == 0 and layer.weight.shape == (50, dim)
    for indices in (
        torch.tensor([[0, 49, 7], [7, 7, 3]]),
        torch.tensor(4),
        torch.zeros(0, dtype=torch.int64),
    ):
        y = layer(indices)
        assert y.shape == (*indices.shape, dim) and y.dtype == dtype
        assert torch.equal(y, layer.dequantize()[indices])
        assert torch.equal(layer(indices.int()), y)
    assert torch.equal(layer(torch.tensor([0])), torch.zeros(1, dim, dtype=dtype))


def test_compute_dtype_is_that_of_the_result():
    layer = Embedding4bit(50, 64, compute_dtype=torch.bfloat16)
    assert layer(torch.tensor([3])).dtype == torch.bfloat16
    assert torch.equal(embedding_4bit(torch.tensor([3]), layer.weight), layer.dequantize()[3:4])


def test_refusals():
    layer = Embedding4bit(50, 64)
    for index in (50, -1):
        with pytest.raises(IndexError, match=r"\[embedding_4bit\] index"):
            layer(torch.tensor([0, index]))
    with pytest.raises(TypeError, match=r"\[embedding_4bit\] indices"):
        layer(torch.tensor([0.5]))
    with pytest.raises(ValueError, match=r"\[Embedding4bit.from_float\] max_norm"):
        Embedding4bit.from_float(nn.Embedding(5, 64, max_norm=1.0))
    with pytest.raises(TypeError, match=r"\[Embedding4bit.from_float\] module: got Linear"):
        Embedding4bit.from_float(nn.Linear(5, 64))


def test_moving_and_loading():
    layer = Embedding4bit(50, 64, double_quant=True)
    again = Embedding4bit(50, 64)
    again.load_state_dict(layer.state_dict())
    indices = torch.arange(50)
    assert torch.equal(again(indices), layer(indices))
    dense = nn.Embedding(50, 64)
    again.load_state_dict(dense.state_dict())
    assert torch.equal(again.weight.codes, qbits.quantize(dense.weight.detach()).codes)
    assert layer.to(torch.bfloat16)(indices).dtype == torch.bfloat16
    assert layer.to("meta")(indices.to("meta")).is_meta


def test_from_pretrained_is_that_of_embedding():
    table = torch.randn(50, 64)
    layer = Embedding4bit.from_pretrained(table, "int4", padding_idx=3)
    assert torch.equal(layer.weight.codes, qbits.quantize(table, "int4").codes)
    assert (layer.padding_idx, layer.config.format) == (3, "int4")
