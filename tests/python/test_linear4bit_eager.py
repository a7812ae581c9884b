"""An eager call of Linear4bit bypasses torch's dispatcher, unless something that acts there has to see it."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import qbits
import qbits.functional.linear as linear
from qbits.functional import linear_4bit
from qbits.nn import Linear4bit

OP = torch.ops.qbits.linear_4bit.default


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Linear4bit(64, 32)


@pytest.fixture
def x():
    return torch.randn(3, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def dispatched(monkeypatch):
    """The calls that went to the op."""
    calls = []

    def counting(*args):
        calls.append(args)
        return OP(*args)

    monkeypatch.setattr(linear, "_linear", counting)
    return calls


def through_the_dispatcher(x, weight, bias):
    codes, scales, *rest = weight.operands
    return OP(x, codes, scales, bias, *rest)


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64), (0, 64)])
@pytest.mark.parametrize("options", [{}, {"double_quant": True}, {"format": "int4"}], ids=str)
def test_a_plain_call_gives_what_the_op_gives(shape, options, dispatched):
    layer = Linear4bit(64, 32, **options)
    x = torch.randn(shape)
    want = through_the_dispatcher(x, layer.weight, layer.bias.detach())
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y = layer(x)
        assert torch.equal(y, want) and y.is_inference() == (context is torch.inference_mode)
    assert torch.equal(layer(x.requires_grad_()), want)
    assert not dispatched


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Ops, Functions])
@pytest.mark.parametrize("grad", [False, True])
def test_modes_see_the_op(layer, x, mode, grad):
    with torch.set_grad_enabled(grad), mode() as seen:
        layer(x.requires_grad_(grad))
    assert OP in seen.seen


@pytest.mark.parametrize("grad", [False, True])
def test_the_profiler_sees_the_op(layer, x, grad):
    with torch.set_grad_enabled(grad), torch.profiler.profile() as profile:
        layer(x.requires_grad_(grad))
    assert "qbits::linear_4bit" in {event.name for event in profile.events()}


def test_a_trace_holds_the_op(layer, x):
    with torch.no_grad():
        traced = torch.jit.trace(layer, x)
        assert "qbits::linear_4bit" in str(traced.graph)
        assert torch.equal(traced(2 * x), layer(2 * x))


def test_negated_views(layer, x):
    negative = torch.complex(torch.zeros_like(x), x).conj().imag
    assert negative.is_neg() and torch.equal(negative, -x)
    bias = torch.complex(torch.zeros(32), layer.bias.detach()).conj().imag
    assert bias.is_neg()
    with torch.no_grad():
        assert torch.equal(layer(negative), layer(-x))
        assert torch.equal(linear_4bit(x, layer.weight, bias), linear_4bit(x, layer.weight, bias.clone()))


@torch.no_grad()
def test_tensors_of_other_kinds_go_through_the_dispatcher(layer, x):
    want, bias = layer(x), layer.bias.detach()
    assert torch.equal(linear_4bit(nn.Parameter(x), layer.weight, bias), want)
    for two in (
        linear_4bit(TwoTensor(x, -x), layer.weight, bias),
        linear_4bit(x, layer.weight, TwoTensor(bias, -bias)),
    ):
        assert isinstance(two, TwoTensor) and torch.equal(two.a, want) and not torch.equal(two.b, want)
    layer.to("meta")
    assert layer(x.to("meta")).shape == (3, 32)
    with pytest.raises((ValueError, TypeError), match=r"\[linear_4bit\] codes: got .* on meta, want"):
        layer(x)


WRITES = {
    "data": lambda layer, other: setattr(layer.weight, "data", other.weight.data),
    "in place": lambda layer, other: layer.weight.mul_(2),
    "copy": lambda layer, other: layer.weight.copy_(other.weight),
    "codes in place": lambda layer, other: layer.weight.codes.zero_(),
    "codes": lambda layer, other: setattr(layer.weight, "codes", other.weight.codes),
    "scales": lambda layer, other: setattr(layer.weight, "absmax", 3 * layer.weight.absmax),
    "state dict": lambda layer, other: layer.load_state_dict(other.state_dict()),
    "dense state dict": lambda layer, other: layer.load_state_dict(nn.Linear(64, 32).state_dict()),
    "assigned state dict": lambda layer, other: layer.load_state_dict(other.state_dict(), assign=True),
    "to and fro": lambda layer, other: (layer.to(torch.bfloat16), layer.load_state_dict(other.state_dict())),
    "parameter": lambda layer, other: setattr(layer, "weight", other.weight),
    "another format": lambda layer, other: setattr(
        layer.weight, "data", qbits.quantize(torch.randn(32, 64), "int4")
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_a_layer_uses_the_tensors_its_weight_has_now(layer, x, write):
    before = layer(x)
    write(layer, Linear4bit(64, 32))
    layer.float()
    want = nn.functional.linear(x, layer.dequantize(), layer.bias)
    assert not torch.allclose(before, want, atol=1e-2)
    torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("write", [lambda w: w.codes.add_(1), lambda w: w.mul_(2)])
def test_a_weight_written_to_before_the_backward_pass_is_noticed(layer, x, write):
    y = layer(x.requires_grad_())
    with torch.no_grad():
        write(layer.weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_bias_that_is_no_tensor_is_refused(layer, x):
    with pytest.raises(TypeError, match=r"^\[linear_4bit\] bias: got list, want a tensor"):
        linear_4bit(x, layer.weight, [1.0])


def test_scales_that_require_grad_are_refused(layer, x):
    layer.bias.requires_grad_(False)
    layer.weight.absmax.requires_grad_()
    with pytest.raises(RuntimeError, match=r"\[linear_4bit\] gradient: got an input that requires grad"):
        layer(x)


def in_threads(work, count):
    """What `work` of 0 to count - 1 returns, each in a thread of its own."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


@pytest.mark.gpu
@torch.no_grad()
def test_the_first_cuda_work_of_a_thread(gpu):
    layer, x = Linear4bit(256, 256, dtype=torch.bfloat16).to(gpu), torch.randn(64, 256, device=gpu).bfloat16()
    want = layer(x)
    del x, want  # the allocator then has what the thread asks for
    x = torch.randn(64, 256, device=gpu).bfloat16()
    (y,) = in_threads(lambda _: layer(x), 1)
    assert torch.equal(y, layer(x))


@pytest.mark.gpu
@torch.no_grad()
def test_threads_with_layers_and_rows_of_many_sizes(gpu):
    layers = [Linear4bit(k, n, dtype=torch.bfloat16).to(gpu) for n in (64, 200, 256) for k in (64, 96, 256)]
    inputs = {
        (i, m): torch.randn(m, layer.in_features, device=gpu).bfloat16()
        for i, layer in enumerate(layers)
        for m in (1, 5, 17, 40, 200)
    }
    want = {key: layers[key[0]](x) for key, x in inputs.items()}

    @torch.no_grad()
    def wrong(thread):
        keys = sorted(inputs)
        random.Random(thread).shuffle(keys)
        return [key for key in keys * 5 if not torch.equal(layers[key[0]](inputs[key]), want[key])]

    torch.cuda.synchronize()
    assert in_threads(wrong, 8) == [[]] * 8
