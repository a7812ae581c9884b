"""Linear8bit: products against float64, gradients, float weights, and the life of a module."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import qbits
import reference
from case_parts import DTYPES, THRESHOLDS
from qbits.functional import linear_int8, linear_int8_from_float, quantize_int8_rowwise
from qbits.nn import Linear8bit

PRODUCTS = [*({"threshold": threshold} for threshold in THRESHOLDS), {"activation_bits": 16}]
SHAPES = [(33,), (0, 33), (1, 33), (5, 33), (2, 3, 33), (2, 1, 3, 33), (2, 0, 33)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def with_outliers(x):
    x = x.clone()
    x[..., 3] = 20.0
    return x


def exact(layer, x):
    """The product in float64, of the weight's codes as they are."""
    rows = x.reshape(-1, x.shape[-1])
    rounded = rows.double()
    if layer.activation_bits == 8:
        codes, scales, columns = reference.quantize_int8_rowwise(rows, layer.threshold)
        rounded = codes.double() * scales.double()[:, None] / 127
        rounded[:, columns] = rows[:, columns].double()
    weight = layer.weight
    if layer.has_fp16_weights:
        weight = qbits.quantize(weight.detach(), "int8")
    dense = weight.codes.double() * weight.scales.double()[:, None] / 127
    y = rounded @ dense.T + (0 if layer.bias is None else layer.bias.detach().double())
    return y.reshape(*x.shape[:-1], len(dense))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", PRODUCTS)
@pytest.mark.parametrize("kept", [False, True])
def test_product(shape, dtype, options, kept):
    layer = Linear8bit(33, 7, dtype=dtype, has_fp16_weights=kept, **options)
    x = with_outliers(torch.randn(shape)).to(dtype)
    y = layer(x)
    assert y.shape == (*shape[:-1], 7) and y.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(y.double(), exact(layer, x), atol=tolerance, rtol=tolerance)


def test_the_threshold_decides_about_outliers():
    x = with_outliers(torch.randn(4, 64))
    layers = [Linear8bit(64, 16, threshold=threshold) for threshold in (0.0, 6.0)]
    layers[1].load_state_dict(layers[0].state_dict())
    dense = x @ layers[0].dequantize().T + layers[0].bias
    without, kept = ((layer(x) - dense).abs().max() for layer in layers)
    assert kept < without / 2
    x[0, 3] = 5.0  # no outlier any more, but one of another row makes its column one
    assert torch.equal(
        layers[1](x), linear_int8(x, *layers[1].weight.tensors().values(), layers[1].bias, 6.0)
    )


def test_activation_bits():
    x = with_outliers(torch.randn(4, 64))
    layer, weight_only = Linear8bit(64, 16), Linear8bit(64, 16, activation_bits=16)
    assert (layer.activation_bits, weight_only.activation_bits, weight_only.threshold) == (8, 16, 0.0)
    state = layer.state_dict()
    assert weight_only.load_state_dict(state) == ([], [])
    after = weight_only.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[key], state[key]) for key in state)
    dense = x @ layer.dequantize().T + layer.bias
    torch.testing.assert_close(weight_only(x), dense, atol=1e-5, rtol=1e-5)
    assert (layer(x) - dense).abs().max() > 100 * (weight_only(x) - dense).abs().max()
    codes, scales = layer.weight.tensors().values()
    assert torch.equal(weight_only(x), linear_int8(x, codes, scales, layer.bias, activation_bits=16))
    dense = nn.Linear(64, 16)
    kept = Linear8bit.from_float(
        dense, qbits.QuantizeConfig("int8", activation_bits=16), has_fp16_weights=True
    )
    want = linear_int8_from_float(x, dense.weight, dense.bias, activation_bits=16)
    rows = quantize_int8_rowwise(dense.weight)
    assert torch.equal(kept(x), want)
    assert torch.equal(want, linear_int8(x, rows.codes, rows.scales, dense.bias, activation_bits=16))
    assert not torch.equal(want, linear_int8_from_float(x, dense.weight, dense.bias))
    for bits in (4, True, "16"):
        with pytest.raises(ValueError, match=r"\[QuantizeConfig\] activation_bits: got .*, want 8 or 16"):
            Linear8bit(64, 16, activation_bits=bits)
        with pytest.raises(
            ValueError, match=r"\[linear_int8_from_float\] activation_bits: got .*, want 8 or"
        ):
            linear_int8_from_float(x, dense.weight, activation_bits=bits)
    with pytest.raises(ValueError, match=r"\[linear_int8_from_float\] threshold: got 6.0, want 0 where"):
        linear_int8_from_float(x, dense.weight, None, 6.0, 16)


def test_without_bias_and_without_a_row_or_column():
    layer = Linear8bit(64, 16, bias=False)
    x = torch.randn(2, 64)
    torch.testing.assert_close(layer(x).double(), exact(layer, x), atol=1e-5, rtol=1e-5)
    for rows, cols in ((3, 0), (0, 3), (0, 0)):
        for leading in ((), (2,), (0,), (2, 3)):
            for kept in (False, True):
                layer = Linear8bit(cols, rows, threshold=6.0, has_fp16_weights=kept)
                x = torch.randn(*leading, cols, requires_grad=True)
                y = layer(x)
                assert torch.equal(y, layer.bias.expand(*leading, rows))
                y.sum().backward()
                assert torch.equal(x.grad, torch.zeros_like(x))
                assert torch.equal(layer.bias.grad, torch.ones_like(y).sum_to_size(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48,), (5, 48), (2, 3, 48)])
@pytest.mark.parametrize("options", PRODUCTS)
@pytest.mark.parametrize("kept", [False, True])
def test_gradients_are_straight_through(dtype, shape, options, kept):
    layer = Linear8bit(48, 20, dtype=dtype, has_fp16_weights=kept, **options)
    x = with_outliers(torch.randn(shape)).to(dtype).requires_grad_()
    grad = torch.randn(*shape[:-1], 20).to(dtype)
    layer(x).backward(grad)
    weight = layer.weight if not kept else qbits.quantize(layer.weight.detach(), "int8")
    rows, out = x.detach().double().reshape(-1, 48), grad.double().reshape(-1, 20)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    want = {"x": grad.double() @ weight.dequantize(torch.float32).double(), "bias": out.sum(0)}
    got = {"x": x.grad, "bias": layer.bias.grad}
    if kept:
        want["weight"], got["weight"] = out.T @ rows, layer.weight.grad
    else:
        assert layer.weight.grad is None
    for name, value in want.items():
        assert got[name].dtype == dtype
        torch.testing.assert_close(got[name].double(), value, atol=tolerance, rtol=tolerance)


def test_the_backward_pass_keeps_only_the_weight():
    for layer, kept in (
        (Linear8bit(256, 64, bias=False), 0),
        (Linear8bit(256, 64, bias=False, has_fp16_weights=True), 8 * 256 * 4),
    ):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # noqa: B023
            layer(torch.randn(8, 256, requires_grad=True))
        assert sum(t.nbytes for t in saved) == layer.weight.nbytes + kept
    layer.weight.requires_grad_(False)  # then x is not needed
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.randn(8, 256, requires_grad=True))
    assert sum(t.nbytes for t in saved) == layer.weight.nbytes


def test_a_float_weight_has_the_state_of_linear():
    layer, linear = Linear8bit(64, 16, has_fp16_weights=True), nn.Linear(64, 16)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert layer.load_state_dict(linear.state_dict()) == ([], [])
    assert torch.equal(layer.weight, linear.weight) and layer.weight.requires_grad
    before = layer.weight.detach().clone()
    for strict in (False, True):
        with pytest.raises(RuntimeError, match="got a quantized one, want a dense weight"):
            layer.load_state_dict(Linear8bit(64, 16).state_dict(), strict=strict)
    assert torch.equal(layer.weight, before)
    assert Linear8bit(64, 16).load_state_dict(layer.state_dict()) == ([], [])
    assert layer.to(torch.bfloat16).weight.dtype == torch.bfloat16
    shared = Linear8bit.from_float(linear, has_fp16_weights=True)
    assert shared.weight is linear.weight and shared.bias is linear.bias and shared.has_fp16_weights
    assert torch.equal(copy.deepcopy(shared)(torch.ones(64)), shared(torch.ones(64)))


def test_gradient_checkpointing():
    model = nn.Sequential(Linear8bit(64, 64), nn.GELU(), Linear8bit(64, 64, has_fp16_weights=True))
    x = torch.randn(4, 64, requires_grad=True)
    model(x).sum().backward()
    expected, x.grad = x.grad, None
    checkpoint(model, x, use_reentrant=False).sum().backward()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("kept", [False, True])
def test_compute_dtype(kept):
    layer = Linear8bit(64, 16, compute_dtype=torch.bfloat16, threshold=6.0, has_fp16_weights=kept)
    x = with_outliers(torch.randn(3, 64)).requires_grad_()
    y = layer(x)
    assert y.dtype == torch.float32
    weight = qbits.quantize(layer.weight.detach(), "int8") if kept else layer.weight
    bias = layer.bias.detach().bfloat16()
    want = linear_int8(x.detach().bfloat16(), weight.codes, weight.scales, bias, 6.0)
    assert torch.equal(y, want.float())
    y.sum().backward()
    assert x.grad.dtype == torch.float32
    # By default, that of x, whatever the weight's: no cast of a 16-bit model's activations.
    assert Linear8bit(64, 16, dtype=torch.bfloat16, has_fp16_weights=kept)(x).dtype == torch.float32


@pytest.mark.parametrize("kept", [False, True])
def test_autocast_keeps_the_outliers(kept):
    layer = Linear8bit(64, 16, threshold=6.0, has_fp16_weights=kept)
    x = with_outliers(torch.randn(3, 64)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, copy.deepcopy(layer)(x.bfloat16()))
    y.sum().backward()
    assert x.grad.dtype == torch.float32 and layer.bias.grad.dtype == torch.float32


def test_from_float_shares_the_bias_and_keeps_the_mode():
    linear = nn.Linear(64, 16, dtype=torch.bfloat16).eval()
    layer = Linear8bit.from_float(linear, "int8")
    assert layer.bias is linear.bias and not layer.training and layer.weight.dtype == torch.bfloat16
    rows = quantize_int8_rowwise(linear.weight)
    assert torch.equal(layer.weight.codes, rows.codes) and torch.equal(layer.weight.scales, rows.scales)
    assert isinstance(layer, nn.Linear) and not layer.weight.requires_grad
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(16, 64)
    layer = Linear8bit.from_float(conv1d)
    assert layer.fan_in_fan_out and layer.weight.shape == (16, 64)
    assert torch.equal(layer.weight.codes, quantize_int8_rowwise(conv1d.weight.T).codes)
    with pytest.raises(
        TypeError, match=r"\[Linear8bit.from_float\] module: got Conv1D, want nn.Linear where"
    ):
        Linear8bit.from_float(conv1d, has_fp16_weights=True)


def test_thresholds():
    assert Linear8bit(64, 16).threshold == 0.0 and Linear8bit(64, 16, threshold=3).threshold == 3.0
    assert Linear8bit(64, 16, config="int8").threshold == 6.0
    assert Linear8bit.from_float(nn.Linear(64, 16)).threshold == 0.0
    assert (
        Linear8bit.from_float(nn.Linear(64, 16), qbits.QuantizeConfig("int8", threshold=4.5)).threshold == 4.5
    )
    for kept in (False, True):
        options = {"threshold": 5.0, "has_fp16_weights": kept}
        assert Linear8bit.from_float(nn.Linear(64, 16), **options).threshold == 5.0
        assert Linear8bit.from_float(nn.Linear(64, 16), "int8", **options).threshold == 5.0
        assert Linear8bit(64, 16, config="int8", has_fp16_weights=kept).threshold == 6.0
        with pytest.raises(TypeError, match=r"\[Linear8bit\] options: got \['treshold'\], want some of Q"):
            Linear8bit(64, 16, treshold=6.0, has_fp16_weights=kept)
    for bad in (-1, float("nan"), float("inf"), 1e39, 10**400):
        with pytest.raises(ValueError, match=r"\[QuantizeConfig\] threshold: got .*, want 0 or a positive"):
            Linear8bit(64, 16, threshold=bad)


def test_refusals():
    for kept in (False, True):
        with pytest.raises(ValueError, match=r"\[Linear8bit\] format: got 'nf4', want one of int8$"):
            Linear8bit(64, 16, config="nf4", has_fp16_weights=kept)
        with pytest.raises(TypeError, match=r"\[Linear8bit\] threshold: got 1.0 beside QuantizeConfig"):
            Linear8bit(64, 16, config=qbits.QuantizeConfig("int8"), threshold=1.0, has_fp16_weights=kept)
        with pytest.raises(TypeError, match="float64, want float32, bfloat16, float16"):
            Linear8bit(64, 16, dtype=torch.float64, has_fp16_weights=kept)
        with pytest.raises(TypeError, match=r"\[Linear8bit.from_float\] module: got Linear8bit, want"):
            Linear8bit.from_float(Linear8bit(64, 16), has_fp16_weights=kept)
        layer = Linear8bit(64, 16, has_fp16_weights=kept)
        with pytest.raises(ValueError, match=r"\[linear_int8\] x: got"):
            layer(torch.randn(2, 63))
        with pytest.raises(TypeError, match=r"\[linear_int8(_from_float)?\] x: got float64"):
            layer(torch.zeros(2, 64, dtype=torch.float64))
        with pytest.raises(TypeError, match=r"\[linear_int8\] x: got list, want a tensor"):
            layer([1, 2])
    for options, message in (
        ({"block_size": 64}, r"block size: got 64, want 0 for whole rows"),
        ({"double_quant": True}, "double quantization: got format int8"),
        ({"experts": True}, "experts: got True, want False"),
    ):
        with pytest.raises(ValueError, match=rf"\[QuantizeConfig\] {message}"):
            Linear8bit(64, 16, **options)
    with pytest.raises(ValueError, match=r"\[QuantizeConfig\] threshold: got 6.0, want None: nf4 has"):
        qbits.QuantizeConfig("nf4", threshold=6.0)
    for weight, error in (
        (torch.randn(3, 4, 32), ValueError),
        (torch.ones(4, 32).long(), TypeError),
        (3, TypeError),
    ):
        with pytest.raises(error, match=r"\[linear_int8_from_float\] weight: got"):
            linear_int8_from_float(torch.randn(2, 32), weight)
    with pytest.raises(ValueError, match=r"\[quantize\] weight: got -inf at index \[2, 5\]"):
        linear = nn.Linear(64, 16)
        linear.weight.data[2, 5] = float("-inf")
        Linear8bit.from_float(linear)


def test_to_moves_every_tensor_and_keeps_the_parameter():
    layer = Linear8bit(64, 16)
    weight, codes = layer.weight, layer.weight.codes
    layer.to(torch.bfloat16)
    assert layer.weight is weight and weight.dtype == torch.bfloat16 and layer.bias.dtype == torch.bfloat16
    assert torch.equal(weight.codes, codes) and weight.scales.dtype == torch.float32
    with pytest.raises(TypeError, match=r"\[Module.to\] dtype of a quantized weight: got float64"):
        layer.double()
    layer.to("meta")
    assert layer.weight is weight and all(t.is_meta for t in weight.tensors().values())
    assert layer(torch.empty(2, 64, dtype=torch.bfloat16, device="meta")).shape == (2, 16)
    layer.to_empty(device="cpu")
    assert layer.weight.codes.device.type == "cpu" and layer.weight.codes.dtype == torch.int8


def test_copies():
    x = torch.randn(2, 64)
    for kept in (False, True):
        layer = Linear8bit(64, 16, threshold=2.0, has_fp16_weights=kept)
        for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert isinstance(clone.weight, nn.Parameter) and clone.weight is not layer.weight
            assert torch.equal(clone(x), layer(x)) and clone.config == layer.config


def test_printing():
    sizes = "in_features=64, out_features=16, bias=True"
    assert repr(Linear8bit(64, 16, threshold=6)) == f"Linear8bit({sizes}, format=int8, threshold=6.0)"
    layer = Linear8bit(64, 16, has_fp16_weights=True)
    assert repr(layer) == f"Linear8bit({sizes}, threshold=0.0, has_fp16_weights=True)"
    assert (
        repr(Linear8bit(64, 16, activation_bits=16))
        == f"Linear8bit({sizes}, format=int8, activation_bits=16)"
    )


def test_a_layer_without_its_quantized_weight_is_dense():
    layer, x = Linear8bit(64, 16), torch.randn(3, 64)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", nn.Identity())
    want = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), want, atol=5e-2, rtol=5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"threshold": 6.0}, {"activation_bits": 16}])
@pytest.mark.parametrize("kept", [False, True])
def test_on_the_gpu(gpu, kept, options):
    layer = Linear8bit(256, 96, has_fp16_weights=kept, **options)
    there = copy.deepcopy(layer).to(gpu)
    if not kept:
        for name, tensor in layer.weight.tensors().items():
            assert torch.equal(there.weight.tensors()[name].cpu(), tensor)
    x = with_outliers(torch.randn(5, 256)).requires_grad_()
    x_there = x.detach().to(gpu).requires_grad_()
    y, y_there = layer(x), there(x_there)
    torch.testing.assert_close(y_there.cpu(), y, atol=1e-4, rtol=1e-4)
    y.sum().backward()
    y_there.sum().backward()
    torch.testing.assert_close(x_there.grad.cpu(), x.grad, atol=1e-2, rtol=1e-2)
    if kept:
        torch.testing.assert_close(there.weight.grad.cpu(), layer.weight.grad, atol=1e-3, rtol=1e-3)
