"""quantize_ and dequantize_: which layers, what stays shared, what is refused, how much memory."""

import gc
import warnings
import weakref

import pytest
import torch
from torch import nn

import qbits
from qbits import QuantizeConfig, QuantizedTensor, dequantize_, quantize_
from qbits.nn import Embedding4bit, Embedding8bit, Linear4bit, Linear8bit
from qbits.nn.quantized_module import QuantizedModule


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64, bias=False)

    def forward(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.down(torch.relu(self.up(x)))


class Model(nn.Module):
    """A small language model with a tied head, as Hugging Face builds them."""

    def __init__(self, tied=True, head="lm_head"):
        super().__init__()
        self.embed = nn.Embedding(50, 64)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head_name = head
        setattr(self, head, nn.Linear(64, 50, bias=False))
        if tied:
            self.get_output_embeddings().weight = self.embed.weight

    def get_output_embeddings(self):
        return getattr(self, self.head_name)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.get_output_embeddings()(x)


IDS = torch.arange(12).view(2, 6)


def quantized(model):
    return [name for name, module in model.named_modules() if isinstance(module, QuantizedModule)]


@pytest.mark.parametrize("format", ["nf4", "fp4", "int4", "int8"])
def test_linear_layers_but_the_output_embeddings(format):
    model = Model()
    expected = model(IDS)
    assert quantize_(model, format) is model
    assert quantized(model) == ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down"]
    assert model.lm_head.weight is model.embed.weight and type(model.lm_head) is nn.Linear
    assert type(model.blocks[0].up) is (Linear8bit if format == "int8" else Linear4bit)
    assert model.blocks[0].down.bias is None and model.blocks[0].up.bias is not None
    y = model(IDS)
    assert (y - expected).norm() < 0.1 * expected.norm()
    y.sum().backward()
    assert model.embed.weight.grad is not None


@pytest.mark.parametrize("tied", [False, True])
def test_an_output_embedding_of_any_name_is_skipped(tied):
    assert "out" not in quantized(quantize_(Model(tied, head="out")))


def test_an_explicit_skip_replaces_the_default():
    model = quantize_(Model(), skip=[])
    assert "lm_head" in quantized(model) and isinstance(model.embed.weight, nn.Parameter)
    assert not isinstance(model.embed.weight, QuantizedTensor)  # untied
    model = quantize_(Model(), skip=["blocks.0", "down"])
    assert quantized(model) == ["blocks.1.up", "lm_head"]
    assert quantized(quantize_(Model(), skip=["*.up", "lm_head"])) == ["blocks.0.down", "blocks.1.down"]
    assert quantized(quantize_(Model(), skip="blocks")) == ["lm_head"]
    # A part of a name is not a name.
    assert len(quantized(quantize_(Model(), skip=["lm_hea", "own"]))) == 5


def test_embeddings_on_request():
    model = quantize_(Model(tied=False), QuantizeConfig(embeddings=True))
    assert isinstance(model.embed, Embedding4bit) and type(model.lm_head) is nn.Linear
    assert model(IDS).shape == (2, 6, 50)
    model = quantize_(Model(tied=True), QuantizeConfig(embeddings=True), skip=[])
    assert isinstance(model.embed, Embedding4bit) and isinstance(model.lm_head, Linear4bit)
    assert model.embed.weight is model.lm_head.weight  # tied still, and quantized once


def test_embeddings_in_8_bits_on_request():
    model = quantize_(Model(tied=True), QuantizeConfig("int8", embeddings=True), skip=[])
    assert isinstance(model.embed, Embedding8bit) and isinstance(model.lm_head, Linear8bit)
    assert model.embed.weight is model.lm_head.weight  # tied still, and quantized once
    assert model(IDS).shape == (2, 6, 50)
    dequantize_(model)
    assert type(model.embed) is nn.Embedding and model.embed.weight is model.lm_head.weight


def test_the_threshold_of_int8():
    thresholds = [
        (quantize_(Model(), "int8"), 6.0),
        (quantize_(Model(), "int8", threshold=0), 0.0),
        (quantize_(Model(), "int8", threshold=2.5), 2.5),
        (quantize_(Model(), QuantizeConfig("int8", threshold=3)), 3.0),
    ]
    for model, threshold in thresholds:
        assert {model.get_submodule(name).threshold for name in quantized(model)} == {threshold}
    model = Model()
    for config, error, message in [
        ("nf4", ValueError, r"\[QuantizeConfig\] threshold: got 6.0, want None: nf4 has no outliers"),
        (QuantizeConfig("int8"), TypeError, r"\[quantize_\] threshold: got 6.0 beside QuantizeConfig"),
    ]:
        with pytest.raises(error, match=message):
            quantize_(model, config, threshold=6.0)
    assert quantized(model) == []


def test_the_activation_bits_of_int8():
    config = QuantizeConfig("int8", activation_bits=16)
    assert (config.threshold, QuantizeConfig("int8").activation_bits) == (0.0, 8)
    for model in (quantize_(Model(), "int8", activation_bits=16), quantize_(Model(), config)):
        layers = [model.get_submodule(name) for name in quantized(model)]
        assert layers and {(layer.activation_bits, layer.threshold) for layer in layers} == {(16, 0.0)}
    assert QuantizeConfig("int8", threshold=0, activation_bits=16) == config
    assert QuantizeConfig("nf4").activation_bits is None
    model = Model()
    for chosen, options, error, message in [
        ("int8", {"threshold": 6.0}, ValueError, r"\[QuantizeConfig\] threshold: got 6.0, want 0 where"),
        ("int4", {}, ValueError, r"\[QuantizeConfig\] activation_bits: got 16, want None: int4 has no"),
        (config, {}, TypeError, r"\[quantize_\] activation_bits: got 16 beside QuantizeConfig"),
    ]:
        with pytest.raises(error, match=message):
            quantize_(model, chosen, activation_bits=16, **options)
    assert quantized(model) == []


def test_config_reaches_every_layer():
    config = QuantizeConfig("nf4", block_size=32, double_quant=True, compute_dtype=torch.bfloat16)
    model = quantize_(Model(), config)
    for name in quantized(model):
        layer = model.get_submodule(name)
        assert layer.weight.block_size == 32 and layer.weight.double_quant
        assert layer.compute_dtype == torch.bfloat16 and layer.config is config


def test_shared_modules_and_weights_stay_shared():
    shared = nn.Linear(64, 64)
    a, b = nn.Linear(64, 64), nn.Linear(64, 64)
    b.weight = a.weight
    model = nn.ModuleDict({"x": shared, "y": nn.Sequential(shared, a), "z": b})
    quantize_(model)
    assert isinstance(model["x"], Linear4bit) and model["x"] is model["y"][0]
    assert model["y"][1].weight is model["z"].weight and model["z"].bias is b.bias
    dequantize_(model)
    assert type(model["x"]) is nn.Linear and model["x"] is model["y"][0]
    assert model["y"][1].weight is model["z"].weight


@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_conv1d(format):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(conv1d(48, 64), nn.Linear(48, 64))
    model[0].bias.data.normal_()
    x, dense = torch.randn(2, 3, 64), model[0].weight.detach().clone()
    expected = model(x)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    quantize_(model, format)
    assert isinstance(model[0], Linear4bit | Linear8bit) and model[0].weight.shape == (48, 64)
    assert (model(x) - expected).norm() < 0.15 * expected.norm()
    codes = model[0].weight.codes.clone()
    model[0].weight.data.zero_()
    model.load_state_dict(state)  # the dense state, transposed as Conv1D has it
    assert torch.equal(model[0].weight.codes, codes)
    y = model(x)
    dequantize_(model)
    assert isinstance(model[0], conv1d) and model[0].weight.shape == (64, 48)
    tolerance = 1e-5 if format == "nf4" else 0.1  # int8 rounds x, too
    torch.testing.assert_close(model(x), y, atol=tolerance, rtol=1e-5)
    assert (model[0].weight - dense).norm() < 0.15 * dense.norm()


@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_dequantize(format):
    model = quantize_(Model(), format)
    y = model(IDS)
    values = model.blocks[0].up.dequantize()
    assert dequantize_(model) is model and quantized(model) == []
    assert torch.equal(model.blocks[0].up.weight, values)
    tolerance = 1e-4 if format == "nf4" else 0.1  # int8 rounds x, too
    torch.testing.assert_close(model(IDS), y, atol=tolerance, rtol=tolerance)
    quantize_(model, QuantizeConfig(format, embeddings=True), skip=[])
    dequantize_(model, torch.bfloat16)
    assert type(model.embed) is nn.Embedding and model.embed.weight.dtype == torch.bfloat16
    assert model.embed.weight is model.lm_head.weight


@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_dequantizing_to_a_dtype_takes_the_bias_along(format):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64, bias=False))
    model[1].bias = model[0].bias
    quantize_(model, format)
    model[1].bias.requires_grad_(False)
    bias = model[0].bias
    dequantize_(model)
    assert model[0].bias is bias
    quantize_(model, format)
    dequantize_(model, torch.bfloat16)
    assert model(torch.randn(3, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert model[0].bias is model[1].bias and not model[0].bias.requires_grad
    assert torch.equal(model[0].bias, bias.bfloat16())
    layer = dequantize_(nn.Sequential(Linear8bit(64, 64, has_fp16_weights=True)), torch.float16)[0]
    assert layer.bias.dtype == torch.float16 and layer.bias.requires_grad


def test_dequantizing_a_float_weight_keeps_it():
    model = nn.Sequential(Linear8bit(64, 32, has_fp16_weights=True), Linear8bit(32, 32))
    weight = model[0].weight
    dequantize_(model)
    assert type(model[0]) is type(model[1]) is nn.Linear
    assert model[0].weight is weight and weight.requires_grad and not model[1].weight.requires_grad
    model = nn.Sequential(Linear8bit(64, 32, has_fp16_weights=True))
    dequantize_(model, torch.bfloat16)
    assert model[0].weight.dtype == torch.bfloat16 and model[0].weight.requires_grad


def test_quantized_layers_and_subclasses_are_left_alone():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(64, 64), Special(64, 64), Linear4bit(64, 64, format="fp4"))
    before = list(model)
    quantize_(model)
    with pytest.warns(
        UserWarning, match=r"\[quantize_\] model: got Sequential with nothing to quantize, want"
    ):
        quantize_(model, "int4")
    assert isinstance(model[0], Linear4bit) and model[0].weight.format == "nf4"
    assert model[1] is before[1] and model[2] is before[2]
    attention = nn.MultiheadAttention(64, 4)
    with pytest.warns(UserWarning, match="nothing to quantize"):
        quantize_(nn.Sequential(attention))
    assert not isinstance(attention.out_proj, Linear4bit)


def test_training_mode_is_kept():
    model = Model().eval()
    model.blocks[0].train()
    quantize_(model)
    assert model.blocks[0].up.training and not model.blocks[1].up.training


def test_on_the_meta_device():
    with torch.device("meta"):
        model = Model(tied=False)
    quantize_(model)
    assert model.blocks[0].up.weight.is_meta and model(IDS.to("meta")).shape == (2, 6, 50)
    assert quantize_(Model(), device="meta").blocks[1].down.weight.codes.is_meta
    assert quantize_(Model(), device="cpu").embed.weight.device.type == "cpu"


def test_refusals_before_anything_is_touched():
    for bad, error, message in [
        ("nf5", ValueError, r"\[QuantizeConfig\] format: got 'nf5', want one of nf4"),
        (
            "dynamic",
            ValueError,
            r"\[QuantizeConfig\] format: got 'dynamic', want one of nf4, fp4, int4, int8$",
        ),
        (4, TypeError, r"\[quantize_\] config: got int"),
    ]:
        model = Model()
        with pytest.raises(error, match=message):
            quantize_(model, bad)
        assert quantized(model) == []
    model = Model()
    model.blocks[1].down.double()
    with pytest.raises(TypeError, match=r"\[quantize_\] blocks.1.down.weight: got float64, want float32"):
        quantize_(model)
    assert quantized(model) == []
    with pytest.raises(ValueError, match=r"\[quantize_\] model: got the layer Linear itself"):
        quantize_(nn.Linear(64, 64))
    with pytest.raises(ValueError, match=r"want a model that contains it, or Linear8bit\.from_float"):
        quantize_(nn.Linear(64, 64), "int8")
    with pytest.raises(TypeError, match=r"\[quantize_\] model: got Tensor"):
        quantize_(torch.zeros(3))


@pytest.mark.parametrize("config", ["nf4", "int4", "int8", QuantizeConfig(double_quant=True)])
def test_bad_weights_are_named(config):
    model = Model()
    model.blocks[1].down.weight.data[3, 100] = float("nan")
    model.blocks[1].down.weight.data[5, 0] = float("inf")
    message = r"\[quantize\] blocks.1.down.weight: got nan at index \[3, 100\], want finite values"
    with pytest.raises(ValueError, match=message):
        quantize_(model, config)


def test_dense_weights_are_freed_on_the_way(monkeypatch):
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))
    alive = [weakref.ref(layer.weight) for layer in model]
    counts = []
    encode = qbits.tensor.encode

    def counting(*args):
        gc.collect()
        counts.append(sum(ref() is not None for ref in alive))
        return encode(*args)

    monkeypatch.setattr(qbits.tensor, "encode", counting)
    quantize_(model)
    assert counts == [6, 5, 4, 3, 2, 1]


def test_progress(capsys):
    quantize_(Model(), progress=True)
    assert "0/4" in capsys.readouterr().err
    quantize_(Model(), progress=False)
    quantize_(Model())
    assert capsys.readouterr().err == ""


@pytest.mark.gpu
def test_quantizing_on_the_gpu(gpu):
    model, there = Model(), Model()
    there.load_state_dict(model.state_dict())
    quantize_(model)
    quantize_(there, device=gpu)
    assert {p.device.type for p in there.parameters()} == {"cuda"}
    assert torch.equal(there.blocks[1].down.weight.codes.cpu(), model.blocks[1].down.weight.codes)
    torch.testing.assert_close(there(IDS.to(gpu)).cpu(), model(IDS), atol=1e-2, rtol=1e-2)


def test_hooks_move_along():
    model, calls = nn.Sequential(nn.Linear(64, 64)), []
    handle = model[0].register_forward_pre_hook(lambda module, x: calls.append(type(module)))
    quantize_(model)
    model(torch.ones(64))
    dequantize_(model)
    model(torch.ones(64))
    handle.remove()
    model(torch.ones(64))
    assert calls == [Linear4bit, nn.Linear]


EXTRAS = {
    "scale": lambda layer: layer.register_parameter("scale", nn.Parameter(torch.ones(1))),
    "mean": lambda layer: layer.register_buffer("mean", torch.ones(1)),
    "adapter": lambda layer: layer.register_module("adapter", nn.ReLU()),
    "_state_dict_hooks": lambda layer: layer.register_state_dict_post_hook(lambda *args: None),
    "_state_dict_pre_hooks": lambda layer: layer.register_state_dict_pre_hook(lambda *args: None),
    "_load_state_dict_pre_hooks": lambda layer: layer.register_load_state_dict_pre_hook(lambda *args: None),
    "_load_state_dict_post_hooks": lambda layer: layer.register_load_state_dict_post_hook(lambda *args: None),
}


@pytest.mark.parametrize(("name", "add"), EXTRAS.items(), ids=EXTRAS)
def test_a_layer_stays_dense_where_it_holds_more_than_a_weight_and_a_bias(name, add):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    add(model[1])
    layer = model[1]
    with pytest.warns(UserWarning, match=rf"\[quantize_\] 1: got {name}, want .* stays dense") as caught:
        quantize_(model)
    assert len(caught) == 1 and quantized(model) == ["0"] and model[1] is layer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_(model, skip=["1"])


def test_weights_a_hook_computes_stay():
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(64, 64)))
    with pytest.warns(UserWarning, match="nothing to quantize"):
        quantize_(model)
    assert type(model[0]) is nn.Linear


def test_dequantize_refuses_a_layer_itself():
    with pytest.raises(ValueError, match=r"\[dequantize_\] model: got the layer Linear4bit itself"):
        dequantize_(Linear4bit(64, 64))
    with pytest.raises(TypeError, match=r"\[dequantize_\] model: got NoneType"):
        dequantize_(None)


def test_a_refused_dtype_changes_nothing():
    layer = Linear4bit(64, 64)
    with pytest.raises(TypeError, match=r"\[Module.to\] dtype"):
        layer.double()
    assert layer.bias.dtype == torch.float32
    model = quantize_(nn.Sequential(nn.Linear(64, 64)))
    for bad in (torch.float64, "bfloat16"):
        with pytest.raises(TypeError, match=r"\[dequantize_\] dtype: got .*, want torch.float32"):
            dequantize_(model, bad)
        with pytest.raises(TypeError, match=r"\[dequantize\] dtype: got .*, want torch.float32"):
            model[0].weight.dequantize(bad)
    assert isinstance(model[0], Linear4bit)


@pytest.mark.parametrize("skip", [5, [None], ["0", 5]])
def test_skip_is_names(skip):
    model = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(TypeError, match=r"\[quantize_\] skip: got (5|None), want names of modules"):
        quantize_(model, skip=skip)
    assert type(model[0]) is nn.Linear


def test_skip_of_no_module_warns():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with pytest.warns(UserWarning, match=r"\[quantize_\] skip: got '0.weight', which names no module"):
        quantize_(model, "nf4", skip=["0", "0.weight"])
    assert type(model[0]) is nn.Linear and type(model[1]) is Linear4bit


@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_nothing_to_quantize_warns_unless_it_is_quantized_so(format):
    model = quantize_(Model(), format)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_(model, format)
    for model, skip in ((nn.Sequential(nn.Conv2d(3, 8, 3)), None), (Model(), ["blocks", "lm_head"])):
        with pytest.warns(UserWarning, match=r"got (Sequential|Model) with nothing to quantize, want"):
            assert quantize_(model, format, skip=skip) is model
