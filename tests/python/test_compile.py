"""torch.compile: one graph, forward and backward, and one compilation for every number of rows."""

import copy
import subprocess
import sys

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import qbits
from qbits.nn import Linear4bit, Linear8bit
from quantized_layers import embedding, linear

OPTIONS = {
    "nf4": {},
    "nf4 double": {"double_quant": True},
    "int4": {"format": "int4"},
    "int8": {"format": "int8"},
}


@pytest.fixture(autouse=True)
def fresh():
    torch.manual_seed(0)
    torch._dynamo.reset()


def compiled(function, backend="inductor", **options):
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    return torch.compile(function, fullgraph=True, backend=counter, **options), counter


def frames(options):
    """Compilations. Dynamo first takes a threshold for a variable, then starts anew to have its value."""
    return 2 if options.get("format") == "int8" else 1


class Plain(nn.Linear):
    """nn.Linear with a QuantizedTensor for weight: F.linear alone must do."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features)
        self.weight, self.bias = layer.weight, layer.bias


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_one_compilation_forward_and_backward_for_every_number_of_rows(options):
    layer = linear(options, 64, 32)
    model = nn.Sequential(layer, nn.GELU(), Plain(linear(options, 32, 16)))
    fast, counter = compiled(model, dynamic=True)
    for rows in (3, 5, 8, 17):
        x = torch.randn(rows, 64, requires_grad=True)
        y, expected = fast(x), model(x)
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        (expected_grad,) = torch.autograd.grad(expected.square().sum(), x)
        torch.testing.assert_close(grad, expected_grad, atol=1e-4, rtol=1e-4)
    assert counter.frame_count <= frames(options)


@pytest.mark.parametrize("double_quant", [False, True])
def test_functions_that_make_a_map_are_traced(double_quant):
    def there_and_back(x):
        codes, state = qbits.functional.quantize_4bit(x, compress_statistics=double_quant, quant_type="nf4")
        bytes_, state8 = qbits.functional.quantize_blockwise(x, blocksize=64)
        return (
            qbits.functional.dequantize_4bit(codes, state),
            qbits.functional.dequantize_blockwise(bytes_, state8),
            qbits.quantize(x, double_quant=double_quant).dequantize(),
        )

    fast, counter = compiled(there_and_back)
    x = torch.randn(32, 64)
    assert all(map(torch.equal, fast(x), there_and_back(x)))
    assert counter.frame_count == 1
    assert all(map(torch.equal, there_and_back(x), there_and_back(x)))  # no fake map was kept


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("grad", [False, True])
def test_a_graph_sees_its_own_writes_to_a_weight(options, grad):
    layers = {
        "linear": (linear(options, 64, 32), torch.randn(3, 64)),
        "embedding": (embedding(options, 32, 64), torch.tensor([[3, 31]])),
    }

    def write_and_call(layer, x, dense):
        with torch.no_grad():
            layer.weight.copy_(dense)
            before = layer(x)
            layer.weight.mul_(2)
        return before, layer(x)

    for layer, x in layers.values():
        eager, dense = copy.deepcopy(layer), torch.randn(32, 64)
        fast, _ = compiled(write_and_call)
        with torch.set_grad_enabled(grad):
            for _ in range(2):
                for y, expected in zip(fast(layer, x, dense), write_and_call(eager, x, dense), strict=True):
                    torch.testing.assert_close(y, expected)
                assert torch.equal(layer.weight.dequantize(), eager.weight.dequantize())
                dense = -dense


@pytest.mark.parametrize(
    "write",
    [lambda w: w[0].fill_(5), lambda w: w[:, 0].zero_(), lambda w: w.T[0].zero_(), lambda w: w.t().mul_(2)],
)
def test_a_graph_refuses_what_it_would_lose(write):
    weight = qbits.quantize(torch.randn(64, 64))
    before = weight.dequantize()
    with pytest.raises(RuntimeError, match="cannot mutate tensors with frozen storage"):
        compiled(write, "aot_eager")[0](weight)
    assert torch.equal(weight.dequantize(), before)


@pytest.mark.parametrize("rows", [32, 512], ids=["inside a block of scales", "whole blocks of scales"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_a_graph_writes_to_rows(double_quant, rows):
    eager = qbits.quantize(torch.randn(rows, 256), double_quant=double_quant)
    fast = copy.deepcopy(eager)

    def write(weight):
        weight[0 : rows // 8].mul_(10)
        return weight * 2

    assert torch.equal(compiled(write, "aot_eager")[0](fast), write(eager))
    assert torch.equal(fast.dequantize(), eager.dequantize())


@pytest.mark.parametrize("rows", [32, 512], ids=["inside a block of scales", "whole blocks of scales"])
def test_double_quantized_rows_that_pass_the_border_of_a_graph_are_read_only(rows):
    weight = qbits.quantize(torch.randn(rows, 256), double_quant=True)
    before = weight.dequantize()
    part = weight[0 : rows // 8]
    assert torch.equal(compiled(lambda w: w * 2, "aot_eager")[0](part), before[: rows // 8] * 2)
    message = r"\[QuantizedTensor\] in-place write to rows of a double-quantized tensor: got .* of a graph"
    with pytest.raises(RuntimeError, match=message):
        compiled(lambda w: w.mul_(2), "aot_eager")[0](part)
    with pytest.raises(RuntimeError, match=message):
        compiled(lambda w: w[0 : rows // 8], "aot_eager")[0](weight).mul_(2)
    assert torch.equal(weight.dequantize(), before)


def test_a_graph_reads_views_and_writes_to_copies_of_them():
    def read(weight, x):
        copies = weight[1].clone().zero_(), weight.T.contiguous().mul_(2)
        return *copies, x @ weight.t() + weight[:, 3], weight.t(), weight.diagonal(), weight.unbind(0)[2]

    weight, x = qbits.quantize(torch.randn(64, 64)), torch.randn(3, 64)
    fast, _ = compiled(read, "aot_eager")
    for y, expected in zip(fast(weight, x), read(weight, x), strict=True):
        torch.testing.assert_close(y, expected.as_subclass(torch.Tensor))


def test_inference_and_leading_dimensions():
    layer = Linear4bit(64, 32, compute_dtype=torch.bfloat16)
    fast, counter = compiled(layer, dynamic=True)
    with torch.no_grad():
        for shape in ((2, 3, 64), (4, 5, 64)):
            x = torch.randn(shape)
            torch.testing.assert_close(fast(x), layer(x), atol=2e-2, rtol=2e-2)
    assert counter.frame_count == 1


def test_moving_after_compilation():
    layer = Linear4bit(64, 32, double_quant=True)
    weight = layer.weight
    fast, _ = compiled(layer, "aot_eager")
    x = torch.randn(3, 64, requires_grad=True)
    fast(x).sum().backward()
    layer.to(torch.bfloat16)
    assert layer.weight is weight and weight.dtype == torch.bfloat16
    y = fast(x.detach().bfloat16())
    assert torch.equal(y, layer(x.detach().bfloat16()))
    layer.to("meta")
    assert weight.is_meta and fast(torch.empty(3, 64, dtype=torch.bfloat16, device="meta")).is_meta


class Loop(nn.Module):
    """Layers in a loop with a graph break, which leaves the frame to Python and the layers to be compiled."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            torch._dynamo.graph_break()
            x = layer(x)
        return x


@torch.no_grad()
def test_one_layers_hook_is_called_where_another_has_none():
    torch._dynamo.reset()
    model, x = Loop(Linear4bit(64, 64), Linear4bit(64, 64)), torch.randn(3, 64)
    model.layers[1].register_forward_hook(lambda layer, args, out: 2 * out)
    want = model(x)
    assert torch.equal(torch.compile(model, backend="eager")(x), want)


def test_embedding_and_fallback_ops():
    indices = torch.tensor([[1, 2], [3, 49]])
    for options in ({}, {"format": "int8"}, {"format": "int8", "compute_dtype": torch.bfloat16}):
        table = embedding(options, 50, 64)
        fast, _ = compiled(table, "aot_eager")
        assert torch.equal(fast(indices), table(indices))
    for format in ("nf4", "int8", "int8_affine", "dynamic"):
        q = qbits.quantize(torch.randn(32, 64), format)
        fast, _ = compiled(lambda x, w: x @ w.t() + w.sum(), "aot_eager")
        x = torch.randn(2, 64)
        torch.testing.assert_close(fast(x, q), x @ q.dequantize().t() + q.dequantize().sum())


def test_autocast_and_checkpointing():
    model = nn.Sequential(Linear4bit(64, 64), nn.ReLU(), Linear4bit(64, 32))

    def step(x):
        with torch.autocast("cpu", torch.bfloat16):
            return checkpoint(model, x, use_reentrant=False)

    fast, _ = compiled(step, "aot_eager")
    x = torch.randn(3, 64, requires_grad=True)
    (grad,) = torch.autograd.grad(fast(x).float().sum(), x)
    (expected,) = torch.autograd.grad(step(x).float().sum(), x)
    torch.testing.assert_close(grad, expected, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("options", [{"threshold": 6.0}, {"activation_bits": 16}])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_options_and_float_weights_of_8_bit_layers(options, kept, autocast):
    layer = Linear8bit(64, 32, has_fp16_weights=kept, **options)
    leaves = [layer.bias, *([layer.weight] if kept else [])]

    def step(x):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return layer(x)

    fast, counter = compiled(step, dynamic=True)
    for rows in (3, 5, 8, 17):
        x = torch.randn(rows, 64)
        x[:, 3] = 20.0
        x.requires_grad_()
        y, expected = fast(x), step(x)
        assert torch.equal(y, expected) and y.dtype == (torch.bfloat16 if autocast else torch.float32)
        gradients = [torch.autograd.grad(out.float().square().sum(), (x, *leaves)) for out in (y, expected)]
        tolerance = 2e-2 if autocast else 1e-4
        torch.testing.assert_close(*gradients, atol=tolerance, rtol=tolerance)
    assert counter.frame_count <= frames({"format": "int8"})


@pytest.mark.parametrize("order", ["import qbits, torch._dynamo", "import torch._dynamo, qbits"])
def test_the_tracer_knows_the_product_in_any_order_of_imports(order):
    code = (
        f"{order}\n"
        "from torch._dynamo import trace_rules, variables\n"
        "from qbits.functional.int8_weight import product_in_graph\n"
        "kind = trace_rules.lookup_callable(product_in_graph)\n"
        "assert kind is variables.TorchInGraphFunctionVariable, kind\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_qbits_does_not_import_the_tracer():
    code = "import sys, qbits; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_transforms_of_8_bit_layers_are_refused_in_a_graph():
    for layer in (Linear8bit(64, 32), Linear8bit(64, 32, has_fp16_weights=True)):
        fast, _ = compiled(torch.func.grad(lambda x: layer(x).sum()), "eager")  # noqa: B023
        with pytest.raises(Exception, match=r"torch\.func inside torch.compile"):
            fast(torch.randn(64))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("options", [{"threshold": 6.0}, {"activation_bits": 16}])
def test_export_of_a_float_weight(strict, options):
    layer = Linear8bit(64, 32, has_fp16_weights=True, **options)
    x = torch.randn(3, 64, requires_grad=True)
    exported = torch.export.export(layer, (x.detach(),), strict=strict).module()
    y = exported(x)
    assert torch.equal(y, layer(x))
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(grad, torch.autograd.grad(layer(x).square().sum(), x)[0])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("bias_requires_grad", [False, True])
def test_export(options, strict, bias_requires_grad, tmp_path):
    model = nn.Sequential(linear(options, 64, 32), nn.GELU(), Plain(linear(options, 32, 16)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bias_requires_grad and name.endswith("bias"))
    x = torch.randn(3, 64)
    rows = torch.export.Dim("rows", min=2, max=100)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: rows},), strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    for exported in (program.module(), loaded.module(), program.run_decompositions().module()):
        for rows in (3, 7):
            x = torch.randn(rows, 64, requires_grad=True)
            y = exported(x)
            assert torch.equal(y, model(x))
            (grad,) = torch.autograd.grad(y.square().sum(), x)
            torch.testing.assert_close(grad, torch.autograd.grad(model(x).square().sum(), x)[0])
    if bias_requires_grad:
        exported = program.module()
        exported(x).square().sum().backward()
        gradients = [
            parameter.grad for name, parameter in exported.named_parameters() if name.endswith("bias")
        ]
        model(x).square().sum().backward()
        torch.testing.assert_close(gradients, [model[0].bias.grad, model[2].bias.grad])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("strict", [False, True])
def test_export_for_any_number_of_rows(options, strict):
    layer, rows = linear(options, 64, 32), torch.export.Dim("rows")
    program = torch.export.export(layer, (torch.randn(3, 64),), dynamic_shapes=({0: rows},), strict=strict)
    for n in (1, 200):
        x = torch.randn(n, 64)
        assert torch.equal(program.module()(x), layer(x))


def test_an_exported_gradient_can_be_differentiated():
    layer = Linear4bit(64, 32)
    x = torch.randn(3, 64, requires_grad=True)
    exported = torch.export.export(layer, (x.detach(),)).module()
    seconds = []
    for model in (exported, layer):
        (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*seconds)


def test_functional_linear_on_an_argument():
    q = qbits.quantize(torch.randn(32, 64))
    fast, _ = compiled(F.linear, "aot_eager")
    x = torch.randn(3, 64)
    torch.testing.assert_close(fast(x, q), F.linear(x, q))


@pytest.mark.gpu
def test_on_the_gpu_after_moving(gpu):
    layer = Linear4bit(64, 32, double_quant=True)
    fast, _ = compiled(layer, dynamic=True)
    fast(torch.randn(3, 64, requires_grad=True)).sum().backward()
    layer.to(gpu)
    x = torch.randn(4, 64, device=gpu, requires_grad=True)
    y = fast(x)
    y.sum().backward()
    torch.testing.assert_close(y, layer(x), atol=1e-3, rtol=1e-3)
    assert x.grad.device.type == "cuda"
