"""QuantizeConfig: what it refuses, and how quantize_ and layers are given one."""

import pytest
import torch
from torch import nn

from qbits import QuantizeConfig, quantize_
from qbits.nn import Embedding4bit, Linear4bit


def test_options_beside_a_format_are_those_of_the_config():
    options = {"block_size": 32, "double_quant": True, "compute_dtype": torch.bfloat16, "embeddings": True}
    model = quantize_(nn.Sequential(nn.Embedding(64, 64), nn.Linear(64, 32)), "fp4", **options)
    assert [type(layer) for layer in model] == [Embedding4bit, Linear4bit]
    assert {layer.config for layer in model} == {QuantizeConfig("fp4", **options)}


@pytest.mark.parametrize("kind", [Linear4bit, Embedding4bit])
def test_a_layer_takes_options_beside_a_format(kind):
    dense = nn.Linear(64, 32) if kind is Linear4bit else nn.Embedding(32, 64)
    for layer in (kind(64, 32, config="fp4", block_size=128), kind.from_float(dense, "fp4", block_size=128)):
        assert layer.config == QuantizeConfig("fp4", block_size=128) and layer.weight.block_size == 128


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (QuantizeConfig(), {"block_size": 32}, "block_size: got 32 beside Quant.*, want it in the Quant"),
        ("nf4", {"format": "fp4"}, "format: got 'fp4' beside 'nf4', want one of them"),
        ("nf4", {"blocksize": 64}, r"options: got \['blocksize'\], want some of QuantizeConfig's: format, b"),
    ],
)
def test_options_that_do_not_fit_are_refused(config, options, message):
    model = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(TypeError, match=rf"\[quantize_\] {message}"):
        quantize_(model, config, **options)
    assert type(model[0]) is nn.Linear
    with pytest.raises(TypeError, match=rf"\[Linear4bit.from_float\] {message}"):
        Linear4bit.from_float(model[0], config, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"double_quant": "no"}, "double quantization: got 'no', want True or False"),
        ({"embeddings": 1}, "embeddings: got 1, want True or False"),
        ({"block_size": "64"}, "block size: got '64', want an int"),
        ({"experts": 1}, "experts: got 1, want True or False"),
        ({"format": "int8", "threshold": "6"}, "threshold: got '6', want a number"),
        ({"format": "int8", "threshold": True}, "threshold: got True, want a number"),
        ({"format": "int4", "scale_dtype": "float16"}, "scale dtype: got 'float16', want torch.float32, "),
        ({"compute_dtype": "float16"}, "compute_dtype: got 'float16', want torch.float32, .* or None"),
    ],
)
def test_options_of_another_type_are_refused(options, message):
    with pytest.raises(TypeError, match=rf"\[QuantizeConfig\] {message}"):
        QuantizeConfig(**options)
