"""A call of a Linear4bit layer is one of libqbits, unless nn.Module's call or forward have more to do."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn.modules import module as modules

from qbits.functional import linear_4bit
from qbits.nn import Linear4bit
from qbits.ops.linear_4bit import direct_layer


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Linear4bit(64, 32)


@pytest.fixture
def x():
    return torch.randn(3, 64, generator=torch.Generator().manual_seed(1))


def is_plain(layer, x):
    return direct_layer(layer, Linear4bit.forward, x) is not None


@contextmanager
def hooked(register, *hook):
    handle = register(*hook)
    yield
    handle.remove()


def seeing(seen):
    def hook(*args):
        seen.append(args)

    return hook


HOOKS = {
    "forward": lambda layer: layer.register_forward_hook,
    "forward pre": lambda layer: layer.register_forward_pre_hook,
    "full backward": lambda layer: layer.register_full_backward_hook,
    "full backward pre": lambda layer: layer.register_full_backward_pre_hook,
    "any module's forward": lambda layer: modules.register_module_forward_hook,
    "any module's forward pre": lambda layer: modules.register_module_forward_pre_hook,
    "any module's full backward": lambda layer: modules.register_module_full_backward_hook,
    "any module's full backward pre": lambda layer: modules.register_module_full_backward_pre_hook,
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_are_called(layer, x, kind):
    seen = []
    x.requires_grad_()
    assert is_plain(layer, x)
    with hooked(HOOKS[kind](layer), seeing(seen)):
        assert not is_plain(layer, x)
        layer(x).sum().backward()
    assert len(seen) == 1
    assert is_plain(layer, x)
    layer(x).sum().backward()
    assert len(seen) == 1


def test_a_hook_may_change_the_result(layer, x):
    with torch.no_grad():
        want = layer(x)
        with hooked(layer.register_forward_hook, lambda layer, args, out: 2 * out):
            assert torch.equal(layer(x), 2 * want)
        assert torch.equal(layer(x), want)


def other(*args, **kwargs):
    return "other"


def test_an_instance_may_have_a_forward_of_its_own(layer, x):
    for name in ("forward", "_call_impl"):
        setattr(layer, name, other)
        assert not is_plain(layer, x) and layer(x) == "other"
        delattr(layer, name)
        assert is_plain(layer, x)


@pytest.mark.parametrize("owner", [Linear4bit, nn.Module])
@pytest.mark.parametrize("name", ["forward", "_call_impl", "__call__"])
def test_classes_may_be_patched(layer, x, owner, name, monkeypatch):
    if owner is nn.Module and name == "forward":
        pytest.skip("layers have their own")
    forward = Linear4bit.forward
    monkeypatch.setattr(owner, name, other)
    assert layer(x) == "other"
    if (owner, name) != (Linear4bit, "__call__"):
        assert direct_layer(layer, forward, x) is None
    monkeypatch.undo()
    assert is_plain(layer, x) and torch.is_tensor(layer(x))


class Doubling(Linear4bit):
    def forward(self, x):
        return 2 * super().forward(x)


class Counting(Linear4bit):
    calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return super().__call__(*args, **kwargs)


def test_subclasses(layer, x):
    doubling, counting = Doubling(64, 32), Counting(64, 32)
    for each in (doubling, counting):
        each.load_state_dict(layer.state_dict())
    want = layer(x)
    assert not is_plain(doubling, x) and torch.equal(doubling(x), 2 * want)
    assert is_plain(counting, x) and torch.equal(counting(x), want) and counting.calls == 1


@torch.no_grad()
def test_a_compiled_module_is_called(layer, x):
    want = layer(x)
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    layer.compile(backend=backend)
    assert not is_plain(layer, x)
    assert torch.equal(layer(x), want) and len(compiled) == 1


@torch.no_grad()
def test_torch_compile_takes_a_call_whole(layer, x):
    want = layer(x)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), want)
    two = nn.Sequential(layer, Linear4bit(32, 16))
    assert torch.equal(torch.compile(two, backend="aot_eager", fullgraph=True)(x), two(x))


class Tracer(torch.fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, Linear4bit)


def test_symbolic_traces_have_the_layer(layer):
    graph = Tracer().trace(nn.Sequential(layer))
    assert [node.op for node in graph.nodes] == ["placeholder", "call_module", "output"]


@torch.no_grad()
def test_dtypes(layer, x):
    want = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_plain(layer, x) and layer(x).dtype == torch.bfloat16
    for dtype in (torch.bfloat16, torch.float32):
        chosen = Linear4bit(64, 32, compute_dtype=dtype)
        chosen.load_state_dict(layer.state_dict())
        assert is_plain(chosen, x) is (dtype == x.dtype)
        assert torch.allclose(chosen(x), want, atol=0.1) and chosen(x).dtype == x.dtype


def test_arguments(layer, x):
    want = layer(x)
    assert torch.equal(layer(x=x), want)
    for args, kwargs in [((), {}), ((x, x), {}), ((x,), {"x": x}), ((), {"input": x})]:
        with pytest.raises(TypeError, match="argument"):
            layer(*args, **kwargs)
    for grad in (True, False):
        for wrong in (None, 1, [x], x[:, :5], x.int()):
            with pytest.raises((TypeError, ValueError), match="linear_4bit"), torch.set_grad_enabled(grad):
                layer(wrong)


def test_weights_of_another_kind(layer, x):
    want = layer(x)
    layer.weight = nn.Parameter(layer.weight.dequantize())
    assert not is_plain(layer, x)
    assert torch.allclose(layer(x), want, atol=1e-5)
    del layer.weight
    assert not is_plain(layer, x)


def test_layers_without_what_a_module_has(x):
    bare = Linear4bit.__new__(Linear4bit)
    assert not is_plain(bare, x)
    with pytest.raises(AttributeError):
        bare(x)
    assert direct_layer(nn.Linear(64, 32), Linear4bit.forward, x) is None


@pytest.mark.parametrize("bias", [True, False])
def test_gradients(x, bias):
    layer = Linear4bit(64, 32, bias=bias)
    mine, other = (x.clone().requires_grad_() for _ in range(2))
    assert is_plain(layer, mine)
    out, want = layer(mine), linear_4bit(other, layer.weight, layer.bias)
    assert out.requires_grad and torch.equal(out, want)
    grads = [
        torch.autograd.grad(y.square().sum(), [of, *([layer.bias] if bias else [])])
        for y, of in ((out, mine), (want, other))
    ]
    for got, wanted in zip(*grads, strict=True):
        assert torch.equal(got, wanted)
