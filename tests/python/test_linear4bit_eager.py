"""An eager call of Linear4bit bypasses torch's dispatcher, unless something that acts there has to see it."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._C._profiler import _ExperimentalConfig
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import qbits
import qbits.functional.linear as linear
from qbits.functional import linear_4bit
from qbits.nn import Linear4bit
from qbits.ops._library import bypasses_dispatcher
from qbits.ops.linear_4bit import direct

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


def negated(x):
    """-x as a view that leaves the negation to its readers."""
    view = torch.complex(torch.zeros_like(x), x).conj().imag
    assert view.is_neg() and torch.equal(view, -x)
    return view


def traced(ask, x):
    torch.jit.trace(lambda x: (ask(), 2 * x)[1], x, check_trace=False)


def within(context):
    def run(ask, x):
        with context():
            ask()

    return run


ALL_THREADS = _ExperimentalConfig(profile_all_threads=True)
ONLOOKERS = {
    "dispatch mode": within(Ops),
    "function mode": within(Functions),
    "profiler": within(torch.profiler.profile),
    "autograd's profiler": within(torch.autograd.profiler.profile),
    "profiler of all threads": within(lambda: torch.profiler.profile(experimental_config=ALL_THREADS)),
    "forward AD": within(forward_ad.dual_level),
    "trace": traced,
    "vmap": lambda ask, x: torch.vmap(lambda x: (ask(), 2 * x)[1])(x),
    "grad": lambda ask, x: torch.func.grad(lambda x: (ask(), x.sum())[1])(x),
    "jvp": lambda ask, x: torch.func.jvp(lambda x: (ask(), 2 * x)[1], (x,), (x,)),
}


@pytest.mark.parametrize("onlooker", ONLOOKERS.values(), ids=ONLOOKERS.keys())
def test_onlookers_are_noticed_while_they_look_on(layer, x, onlooker):
    weight, bias, answers = layer.weight, layer.bias.detach(), []

    def ask():
        answers.append((bypasses_dispatcher(x), direct(x, weight, bias)))

    ask()
    onlooker(ask, x)
    ask()
    (before, out), during, (after, again) = answers
    assert before and after and torch.equal(out, again)
    assert during == (False, None)


def test_what_bypasses_the_dispatcher(x):
    parameter, two = nn.Parameter(x), TwoTensor(x, x)
    for others in [(), (None,), (x, None, parameter)]:
        assert bypasses_dispatcher(x, *others)
    for first in (None, [1.0], parameter, two, negated(x)):
        assert not bypasses_dispatcher(first)
    for other in ([1.0], two, negated(x)):
        assert not bypasses_dispatcher(x, None, other)
    with torch.inference_mode():
        assert bypasses_dispatcher(x) and bypasses_dispatcher(2 * x)


class Unready:
    @property
    def operands(self):
        raise RuntimeError("not yet")


def test_one_call_of_libqbits_leaves_to_others_what_is_theirs(layer, x):
    weight, bias = layer.weight, layer.bias.detach()
    want = through_the_dispatcher(x, weight, bias)
    assert torch.equal(direct(x, weight, bias), want)
    with torch.no_grad():
        assert torch.equal(direct(x, weight, layer.bias), want)
        assert torch.equal(direct(x.clone().requires_grad_(), weight, bias), want)
    for arguments in [(x.clone().requires_grad_(), weight, None), (x, weight, layer.bias)]:
        assert direct(*arguments) is weight.operands
    for wrong in (bias[None], bias[0], bias.bfloat16(), bias.int(), [1.0], negated(bias)):
        assert direct(x, weight, wrong) is None
    for other in (None, torch.randn(32, 64), nn.Parameter(torch.randn(32, 64)), qbits.quantize(x, "int8")):
        assert direct(x, other, bias) is None
    with pytest.raises(RuntimeError, match="not yet"):
        direct(x, Unready(), bias)
    weight.absmax.requires_grad_()
    assert direct(x, weight, bias) is None


@torch.no_grad()
def test_calls_keep_no_references(layer, x):
    held = [x, layer.weight, layer.bias, layer.weight.operands, *layer.weight.operands]
    layer(x)
    counts = [sys.getrefcount(each) for each in held]
    for grad in (False, True):
        for _ in range(50):
            with torch.set_grad_enabled(grad):
                layer(x)
                direct(x, layer.weight, layer.bias[None])
                bypasses_dispatcher(x, layer.bias, [1.0])
    assert [sys.getrefcount(each) for each in held] == counts


def wrong_weight(weight, **changes):
    weight = weight.detach().like()
    for name, value in changes.items():
        setattr(weight, name, value)
    return weight


WRONG = {
    "columns of x": lambda x, w, b: (x[:, 1:], w, b),
    "x without dimensions": lambda x, w, b: (x[0, 0], w, b),
    "dtype of x": lambda x, w, b: (x.double(), w, b),
    "integers": lambda x, w, b: (x.int(), w, b),
    "sparse x": lambda x, w, b: (x.to_sparse(), w, b),
    "bias of another dtype": lambda x, w, b: (x, w, b.bfloat16()),
    "bias of two dimensions": lambda x, w, b: (x, w, b[None]),
    "bias without dimensions": lambda x, w, b: (x, w, b[0]),
    "bias too short": lambda x, w, b: (x, w, b[1:]),
    "bias of nine dimensions and another dtype": lambda x, w, b: (x, w, b.expand(*[1] * 8, 32).bfloat16()),
    "columns of x, bias of nine dimensions": lambda x, w, b: (x[:, 1:], w, b.expand(*[1] * 8, 32)),
    "bias on meta": lambda x, w, b: (x, w, b.to("meta")),
    "codes too short": lambda x, w, b: (x, wrong_weight(w, codes=w.codes.flatten()[1:]), b),
    "dtype of codes": lambda x, w, b: (x, wrong_weight(w, codes=w.codes.int()), b),
    "dtype of scales": lambda x, w, b: (x, wrong_weight(w, absmax=w.absmax.half()), b),
    "format": lambda x, w, b: (x, wrong_weight(w, format="nf5"), b),
    "block size": lambda x, w, b: (x, wrong_weight(w, block_size=63), b),
    "negative rows": lambda x, w, b: (x, wrong_weight(w, rows=-32), b),
    "rows beyond memory": lambda x, w, b: (x, wrong_weight(w, rows=2**60), b),
    "scales that require grad": lambda x, w, b: (
        x,
        wrong_weight(w, absmax=w.absmax.clone().requires_grad_()),
        b,
    ),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG.keys())
def test_an_error_is_that_of_the_op(layer, x, make):
    arguments = make(x, layer.weight, layer.bias.detach())
    with pytest.raises(Exception) as want:
        through_the_dispatcher(*arguments)
    with pytest.raises(want.type) as got:
        linear_4bit(*arguments)
    assert str(got.value) == str(want.value)


@pytest.mark.parametrize("weight", [None, torch.randn(32, 64), nn.Parameter(torch.randn(32, 64))], ids=type)
def test_another_kind_of_weight_is_refused(x, weight):
    with pytest.raises(TypeError, match=r"^\[linear_4bit\] weight: got .*, want a 2-D QuantizedTensor"):
        linear_4bit(x, weight)


@pytest.mark.parametrize("grad", [False, True])
def test_biases_of_another_dtype_or_stride(x, grad):
    layer = Linear4bit(64, 32, dtype=torch.bfloat16)
    want = nn.functional.linear(x, layer.dequantize(torch.float32), layer.bias.float())
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), want)
        strided = layer.bias.detach().float().repeat_interleave(2)[::2].requires_grad_(grad)
        y = linear_4bit(x, layer.weight, strided)
    torch.testing.assert_close(y, want)
    assert y.requires_grad == grad


def test_negated_views(layer, x):
    negative = negated(x)
    bias = negated(layer.bias.detach())
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
