"""Linear4bit: products, gradients, dtypes, devices, and the life of a module."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import qbits
from qbits.functional import linear_4bit
from qbits.nn import Linear4bit

OPTIONS = {
    "nf4": {},
    "nf4 double": {"double_quant": True},
    "fp4 32": {"format": "fp4", "block_size": 32},
    "int4": {"format": "int4", "scale_dtype": torch.bfloat16},
    "int4 rows": {"format": "int4", "block_size": 0},
}


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS.keys())
def options(request):
    return request.param


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def reference(layer):
    """The dense layer with the same weight, in float64."""
    linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, dtype=torch.float64)
    linear.weight.data = layer.dequantize(torch.float32).double()
    if layer.bias is not None:
        linear.bias.data = layer.bias.detach().double()
    return linear


@pytest.mark.parametrize("shape", [(33,), (0, 33), (1, 33), (5, 33), (2, 3, 33), (2, 1, 3, 33), (2, 0, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_product(options, shape, dtype):
    layer = Linear4bit(33, 7, dtype=dtype, **options)
    x = torch.randn(shape).to(dtype)
    y = layer(x)
    assert y.shape == (*shape[:-1], 7) and y.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(y.double(), reference(layer)(x.double()), atol=tolerance, rtol=tolerance)


def test_x_of_any_stride():
    layer = Linear4bit(64, 16)
    x = torch.randn(64, 6).t()
    assert not x.is_contiguous()
    assert torch.equal(layer(x), layer(x.contiguous()))
    x = torch.randn(3, 128)[:, ::2]
    assert torch.equal(layer(x), layer(x.contiguous()))


@pytest.mark.parametrize("bias", [torch.randn(16, 3)[:, 1], torch.ones(1).expand(16), torch.randn(32)[::2]])
def test_bias_of_any_stride(bias):
    weight, x = qbits.quantize(torch.randn(16, 64)), torch.randn(3, 64)
    want = F.linear(x, weight, bias.contiguous())
    assert not bias.is_contiguous() and torch.equal(F.linear(x, weight, bias), want)
    assert torch.equal(F.linear(x.requires_grad_(), weight, bias), want)
    assert torch.equal(
        torch.ops.qbits.linear_4bit(x.detach(), *weight.operands[:2], bias, "nf4", 64, 16, 64), want
    )
    leaf = bias.detach().clone().requires_grad_()
    F.linear(x, weight, leaf.expand(2, 16).t()[:, 1]).sum().backward()
    assert torch.equal(leaf.grad, torch.full((16,), 3.0))
    with pytest.raises(ValueError, match=r"\[linear_4bit\] bias: got"):
        F.linear(x, weight, torch.randn(15, 2)[:, 0])


def test_without_bias():
    layer = Linear4bit(64, 16, bias=False)
    assert layer.bias is None and set(layer.state_dict()) >= {"weight", "weight.absmax"}
    x = torch.randn(2, 64)
    torch.testing.assert_close(layer(x).double(), reference(layer)(x.double()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48,), (5, 48), (2, 3, 48)])
def test_gradients_of_x_and_bias(options, dtype, shape):
    layer = Linear4bit(48, 20, dtype=dtype, **options)
    x = torch.randn(shape).to(dtype).requires_grad_()
    grad = torch.randn(*shape[:-1], 20).to(dtype)
    layer(x).backward(grad)
    dense, x64 = reference(layer), x.detach().double().requires_grad_()
    dense(x64).backward(grad.double())
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(x.grad.double(), x64.grad, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(layer.bias.grad.double(), dense.bias.grad, atol=tolerance, rtol=tolerance)
    assert layer.weight.grad is None and x.grad.dtype == dtype


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize("leading", [(), (2,), (0,), (2, 3)])
def test_layers_without_rows_or_columns(options, shape, leading):
    rows, cols = shape
    # Whole rows of no columns have groups of no elements.
    for extra in ({}, {"block_size": 0}) if options.get("format") == "int4" else ({},):
        layer = Linear4bit(cols, rows, **{**options, **extra})
        x = torch.randn(*leading, cols, requires_grad=True)
        y = layer(x)
        assert torch.equal(y, layer.bias.expand(*leading, rows))
        y.sum().backward()
        assert torch.equal(x.grad, torch.zeros_like(x))
        assert torch.equal(layer.bias.grad, torch.ones_like(y).sum_to_size(rows))


def test_only_what_is_asked_for_gets_a_gradient():
    layer = Linear4bit(64, 16)
    layer.bias.requires_grad_(False)
    assert not layer(torch.randn(2, 64)).requires_grad
    with torch.no_grad():
        assert not layer(torch.randn(2, 64, requires_grad=True)).requires_grad
    with torch.inference_mode():
        assert layer(torch.randn(2, 64)).is_inference()


def test_the_backward_pass_keeps_only_the_packed_weight():
    layer = Linear4bit(256, 64, bias=False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.randn(8, 256, requires_grad=True))
    assert sum(t.nbytes for t in saved) == layer.weight.nbytes


def test_double_backward():
    layer = Linear4bit(32, 16, bias=False)
    x = torch.randn(3, 32, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    grad.square().sum().backward()
    dense, x64 = reference(layer), x.detach().double().requires_grad_()
    (grad64,) = torch.autograd.grad(dense(x64).square().sum(), x64, create_graph=True)
    grad64.square().sum().backward()
    torch.testing.assert_close(x.grad.double(), x64.grad, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    model = nn.Sequential(Linear4bit(64, 64), nn.GELU(), Linear4bit(64, 64, double_quant=True))
    x = torch.randn(4, 64, requires_grad=True)
    model(x).sum().backward()
    expected, x.grad = x.grad, None
    checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert torch.equal(x.grad, expected)


def test_training_an_adapter_beside_frozen_weights():
    base = Linear4bit(32, 32)
    down, up = nn.Linear(32, 4, bias=False), nn.Linear(4, 32, bias=False)
    nn.init.zeros_(up.weight)
    optimizer = torch.optim.AdamW([*down.parameters(), *up.parameters()], lr=1e-2)
    first = nn.Linear(32, 32)
    before = base.weight.codes.clone()
    x, y = torch.randn(64, 32), torch.randn(64, 32)
    losses = []
    for _ in range(30):
        hidden = first(x)
        loss = (base(hidden) + up(down(hidden)) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and first.weight.grad.abs().sum() > 0
    assert torch.equal(base.weight.codes, before)


def test_compute_dtype():
    layer = Linear4bit(64, 16, compute_dtype=torch.bfloat16)
    assert layer.compute_dtype == torch.bfloat16
    x = torch.randn(3, 64, requires_grad=True)
    y = layer(x)
    assert y.dtype == torch.float32
    expected = linear_4bit(x.bfloat16(), layer.weight, layer.bias.bfloat16()).float()
    assert torch.equal(y, expected)
    y.sum().backward()
    assert x.grad.dtype == torch.float32
    # By default, that of x, whatever the weight's: no cast of a 16-bit model's activations.
    layer = Linear4bit(64, 16, dtype=torch.bfloat16)
    assert layer(torch.randn(3, 64)).dtype == torch.float32


def test_autocast():
    layer = Linear4bit(64, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.randn(3, 64, requires_grad=True))
    assert y.dtype == torch.bfloat16
    y.sum().backward()


def test_from_float_shares_the_bias_and_keeps_the_mode(options):
    linear = nn.Linear(64, 16, dtype=torch.bfloat16).eval()
    layer = Linear4bit.from_float(linear, qbits.QuantizeConfig(**options))
    assert layer.bias is linear.bias and not layer.training and layer.weight.dtype == torch.bfloat16
    expected = qbits.quantize(linear.weight.detach(), **{"format": "nf4", **options})
    assert torch.equal(layer.weight.codes, expected.codes)
    assert isinstance(layer, nn.Linear) and not layer.weight.requires_grad
    with pytest.raises(TypeError, match=r"\[Linear4bit.from_float\] module: got Linear4bit, want nn.Linear"):
        Linear4bit.from_float(layer)


def test_bad_weights_are_named():
    linear = nn.Linear(64, 16)
    linear.weight.data[2, 5] = float("-inf")
    with pytest.raises(
        ValueError, match=r"\[quantize\] mlp.up.weight: got -inf at index \[2, 5\], want finite"
    ):
        Linear4bit.from_float(linear, name="mlp.up.weight")


def test_refusals():
    with pytest.raises(ValueError, match=r"\[QuantizeConfig\] format: got 'int3'"):
        Linear4bit(64, 16, format="int3")
    with pytest.raises(
        ValueError, match=r"\[QuantizeConfig\] format: got 'int8_affine', want one of nf4, fp4, int4, int8$"
    ):
        Linear4bit(64, 16, format="int8_affine")
    with pytest.raises(ValueError, match=r"\[Linear4bit\] format: got 'int8', want one of nf4, fp4, int4$"):
        Linear4bit(64, 16, format="int8")
    with pytest.raises(ValueError, match=r"\[Linear4bit.from_float\] format: got 'int8', want one of nf4"):
        Linear4bit.from_float(nn.Linear(64, 16), "int8")
    with pytest.raises(TypeError, match=r"\[QuantizeConfig\] compute_dtype"):
        Linear4bit(64, 16, compute_dtype=torch.float64)
    layer = Linear4bit(64, 16)
    with pytest.raises(ValueError, match=r"\[linear_4bit\] x: got"):
        layer(torch.randn(2, 63))
    with pytest.raises(TypeError, match=r"\[linear_4bit\] x: got float64, want float32, bfloat16, float16$"):
        layer(torch.zeros(2, 64, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"\[linear_4bit\] weight: got Tensor, want a 2-D QuantizedTensor"):
        linear_4bit(torch.randn(2, 64), torch.randn(16, 64))
    with pytest.raises(ValueError, match=r"\[linear_4bit\] weight: got QuantizedTensor\(int8"):
        linear_4bit(torch.randn(2, 64), qbits.quantize(torch.randn(16, 64), "int8"))
    for x in (torch.randn(2, 64), torch.randn(2, 64, requires_grad=True)):
        with pytest.raises(
            ValueError, match=r"\[linear_4bit\] bias: got float32\[1, 16\] on cpu, want 1 dim"
        ):
            linear_4bit(x, qbits.quantize(torch.randn(16, 64), "nf4"), torch.zeros(1, 16))
    for call in (layer, lambda x: linear_4bit(x, layer.weight)):
        with pytest.raises(TypeError, match=r"\[linear_4bit\] x: got list, want a tensor"):
            call([1, 2])
    with pytest.raises(TypeError, match=r"\[embedding_4bit\] indices: got list, want a tensor"):
        qbits.nn.Embedding4bit(8, 64)([1, 2])


def test_to_moves_every_tensor_and_keeps_the_parameter():
    layer = Linear4bit(64, 16, double_quant=True)
    weight, codes = layer.weight, layer.weight.codes
    layer.to(torch.bfloat16)
    assert layer.weight is weight and weight.dtype == torch.bfloat16 and layer.bias.dtype == torch.bfloat16
    assert torch.equal(weight.codes, codes) and weight.nested_absmax.dtype == torch.float32
    assert layer(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    layer.float().half()
    assert weight.dtype == torch.float16 and torch.equal(weight.codes, codes)
    with pytest.raises(TypeError, match=r"\[Module.to\] dtype of a quantized weight: got float64"):
        layer.double()
    layer.to("meta")
    assert layer.weight is weight and weight.is_meta and all(t.is_meta for t in weight.tensors().values())
    assert layer(torch.empty(2, 64, dtype=torch.float16, device="meta")).shape == (2, 16)


def test_meta_to_empty():
    with torch.device("meta"):
        layer = Linear4bit(64, 16, double_quant=True)
    assert layer.weight.is_meta
    layer.to_empty(device="cpu")
    assert layer.weight.device.type == "cpu" and layer.weight.double_quant
    assert layer(torch.randn(2, 64)).shape == (2, 16)


def test_copies():
    layer = Linear4bit(64, 16, double_quant=True)
    x = torch.randn(2, 64)
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(clone.weight, nn.Parameter) and clone.weight is not layer.weight
        assert torch.equal(clone(x), layer(x)) and clone.config == layer.config
    clone.weight.data.zero_()
    assert not torch.equal(clone(x), layer(x))


def test_two_layers_keep_sharing_a_weight():
    a, b = Linear4bit(64, 64), Linear4bit(64, 64)
    b.weight = a.weight
    model = nn.Sequential(a, b).to(torch.bfloat16)
    assert model[0].weight is model[1].weight
    assert len([p for p in model.parameters() if isinstance(p, qbits.QuantizedTensor)]) == 1


def test_initialisation_is_that_of_linear():
    torch.manual_seed(3)
    layer = Linear4bit(64, 16)
    torch.manual_seed(3)
    linear = nn.Linear(64, 16)
    assert torch.equal(layer.weight.codes, qbits.quantize(linear.weight.detach()).codes)
    assert torch.equal(layer.bias, linear.bias)
    layer.reset_parameters()
    assert isinstance(layer.weight, qbits.QuantizedTensor)


def test_printing():
    assert repr(Linear4bit(64, 16, double_quant=True)) == (
        "Linear4bit(in_features=64, out_features=16, bias=True, format=nf4, block_size=64, double_quant=True)"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [32, 64, 256, 4096])
@pytest.mark.parametrize("format", ["nf4", "fp4"])
def test_on_the_gpu_products_err_as_those_of_rounded_weights(gpu, format, block_size):
    """Of weights that were bfloat16, so that the greatest of each block is rounded without error."""
    dense = torch.randn(2048, 4096).to(gpu, torch.bfloat16)
    weight = qbits.quantize(dense, format, block_size=block_size)
    values = weight.dequantize(torch.float32)
    for rows in (8, 16, 64, 300):
        x = torch.randn(rows, 4096).to(gpu, torch.bfloat16)
        exact = x.double() @ values.double().t()
        rounded = nn.functional.linear(x, values.bfloat16())
        error = (linear_4bit(x, weight) - exact).norm() / (rounded - exact).norm()
        assert error <= 1.05, f"{rows} rows"


@pytest.mark.gpu
def test_on_the_gpu_the_bits_are_those_of_the_cpu(gpu, options):
    linear = nn.Linear(256, 96)
    here = Linear4bit.from_float(linear, qbits.QuantizeConfig(**options))
    there = copy.deepcopy(here).to(gpu)
    made_there = Linear4bit.from_float(copy.deepcopy(linear).to(gpu), qbits.QuantizeConfig(**options))
    for name, tensor in here.weight.tensors().items():
        moved, made = there.weight.tensors()[name], made_there.weight.tensors()[name]
        assert moved.device.type == made.device.type == "cuda"
        assert torch.equal(moved.cpu(), tensor) and torch.equal(made.cpu(), tensor)
    assert torch.equal(there.dequantize().cpu(), here.dequantize())
    x = torch.randn(5, 256, requires_grad=True)
    x_there = x.detach().to(gpu).requires_grad_()
    here(x).sum().backward()
    there(x_there).sum().backward()
    torch.testing.assert_close(there(x_there).cpu(), here(x), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(x_there.grad.cpu(), x.grad, atol=1e-2, rtol=1e-2)
    back = there.to("cpu")
    assert back.weight.device.type == "cpu" and torch.equal(back(x), here(x))
    state = {name: value.cpu() for name, value in made_there.state_dict().items()}
    assert all(torch.equal(value, state[name]) for name, value in here.state_dict().items())


@pytest.mark.parametrize(
    "set_it", [lambda p: p.requires_grad_(), lambda p: setattr(p, "requires_grad", True)]
)
def test_a_weight_warns_of_the_gradient_it_will_not_get(set_it):
    weight = qbits.nn.Linear4bit(64, 32).weight
    with pytest.warns(
        UserWarning, match=r"\[QuantizedTensor\] requires_grad: got True, want False in the layers"
    ) as caught:
        set_it(weight)
    assert weight.requires_grad and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not weight.requires_grad_(False).requires_grad
        set_it(qbits.quantize(torch.randn(32, 64)))  # no parameter, so of no layer
        torch.nn.Parameter(weight.detach())


def test_a_config_is_a_format_a_quantize_config_or_options():
    assert qbits.nn.Linear4bit(64, 32, config="fp4").config.format == "fp4"
    dense = torch.nn.Linear(64, 32)
    assert qbits.nn.Linear4bit.from_float(dense, "int4").config.format == "int4"
    with pytest.raises(TypeError, match=r"\[Linear4bit\] config: got dict, want a format"):
        qbits.nn.Linear4bit(64, 32, config={"format": "nf4"})
    with pytest.raises(TypeError, match=r"\[Linear4bit\] format: got 'fp4' beside 'nf4', want one of them"):
        qbits.nn.Linear4bit(64, 32, config="nf4", format="fp4")
    layer = qbits.nn.Linear4bit.from_float(dense, format="fp4", block_size=32)
    assert layer.config == qbits.QuantizeConfig("fp4", block_size=32) and layer.weight.block_size == 32
    with pytest.raises(
        TypeError, match=r"\[Linear4bit.from_float\] block_size: got 32 beside QuantizeConfig"
    ):
        qbits.nn.Linear4bit.from_float(dense, qbits.QuantizeConfig(), block_size=32)
    with pytest.raises(TypeError, match=r"\[quantize_4bit\] A: got list, want a tensor"):
        qbits.functional.quantize_4bit([1.0])
    with pytest.raises(TypeError, match=r"\[quantize_4bit\] quant_storage: got 'uint8'"):
        qbits.functional.quantize_4bit(torch.ones(64), quant_storage="uint8")


@pytest.mark.parametrize("name", ["Linear4bit", "Linear8bit", "Embedding4bit", "Embedding8bit"])
def test_an_option_there_is_not_is_refused_by_the_class_called(name):
    kind = getattr(qbits.nn, name)
    dense = torch.nn.Embedding(8, 8) if name.startswith("Embedding") else torch.nn.Linear(8, 8)
    want = r"options: got \['treshold'\], want some of QuantizeConfig's: format, .*, activation_bits$"
    with pytest.raises(TypeError, match=rf"^\[{name}\] {want}"):
        kind(8, 8, treshold=6.0)
    with pytest.raises(TypeError, match=rf"^\[{name}.from_float\] {want}"):
        kind.from_float(dense, treshold=6.0)
    assert kind.from_float(dense, compute_dtype=torch.bfloat16).compute_dtype == torch.bfloat16
