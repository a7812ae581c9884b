"""The grouped product of a mixture of experts, its gradients, and torch's grouped_mm on packed weights."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

import qbits
from counting import Ops
from qbits.experts import TransposedExperts
from qbits.functional import grouped_linear_4bit, grouped_linear_4bit_plan

OPTIONS = {
    "nf4": {"format": "nf4"},
    "nf4 double": {"format": "nf4", "double_quant": True},
    "int4": {"format": "int4"},
    "fp4 odd": {"format": "fp4", "block_size": 32},
}
E, N, K = 4, 48, 64


def experts(device="cpu", dtype=torch.float32, n=N, k=K, **options):
    dense = torch.randn(E, n, k, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    return qbits.quantize(dense, **(options or OPTIONS["nf4"]))


def inputs(counts, width=K, device="cpu", dtype=torch.float32):
    """x and offsets for so many rows an expert."""
    ends = torch.tensor(counts).cumsum(0).to(device, torch.int32)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(sum(counts), width, generator=generator).to(device, dtype)
    return x, F.pad(ends, (1, 0))


def loop(x, dense, offsets, bias=None):
    """The definition, one expert after the other."""
    ends = offsets.tolist()
    parts = [
        F.linear(x[a:b], dense[e], None if bias is None else bias[e])
        for e, (a, b) in enumerate(itertools.pairwise(ends))
    ]
    return torch.cat(parts)


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS.keys())
def options(request):
    return request.param


@pytest.mark.parametrize("counts", [(3, 0, 9, 1), (0, 0, 0, 5), (0, 0, 0, 0), (1, 1, 1, 1)])
def test_product_and_gradients(counts, options, device):
    weight = experts(device, **options)
    dense = weight.dequantize()
    x, offsets = inputs(counts, device=device)
    bias = torch.randn(E, N, device=device)
    leaves = [t.clone().requires_grad_() for t in (x, bias)]
    want = [t.clone().requires_grad_() for t in (x, bias)]
    with Ops() as counted:
        out = grouped_linear_4bit(leaves[0], weight, offsets, leaves[1])
        out.square().sum().backward()
    assert counted.ran == {"grouped_linear_4bit": 1, "grouped_linear_4bit_grad_x": 1}
    reference = loop(want[0], dense, offsets, want[1])
    reference.square().sum().backward()
    torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-4)
    for got, expected in zip(leaves, want, strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-3)


def test_bias_of_any_stride():
    weight, (x, offsets) = experts(), inputs((3, 0, 9, 1))
    for bias in (torch.randn(N, E).t(), torch.randn(N).expand(E, N)):
        want = grouped_linear_4bit(x, weight, offsets, bias.contiguous())
        assert not bias.is_contiguous() and torch.equal(grouped_linear_4bit(x, weight, offsets, bias), want)


def test_it_may_be_differentiated_twice():
    weight = experts()
    x, offsets = inputs((2, 0, 3, 1))
    x.requires_grad_()
    exact = x.double().detach().requires_grad_()
    torch.autograd.gradcheck(
        lambda t: grouped_linear_4bit(t.float(), weight, offsets).double(), exact, eps=1e-2, atol=1e-2
    )
    grad = torch.randn(6, N, requires_grad=True)
    (grad_x,) = torch.autograd.grad(grouped_linear_4bit(x, weight, offsets), x, grad, create_graph=True)
    v = torch.randn_like(grad_x)
    (again,) = torch.autograd.grad(grad_x, grad, v)
    torch.testing.assert_close(again, loop(v, weight.dequantize(), offsets), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_of_torch_func(options):
    weight = experts(**options)
    dense = weight.dequantize()
    x, offsets = inputs((2, 0, 3, 1))
    bias, v, w = torch.randn(E, N), torch.randn_like(x), torch.randn(E, N)

    def packed(x, bias):
        return grouped_linear_4bit(x, weight, offsets, bias).sin()

    def exact(x, bias):
        return loop(x, dense, offsets, bias).sin()

    def total(f):
        return lambda *args: f(*args).sum()

    transforms = {
        "grad": lambda f: torch.func.grad(total(f), argnums=(0, 1))(x, bias),
        "jvp": lambda f: torch.func.jvp(f, (x, bias), (v, w)),
        "jvp x": lambda f: torch.func.jvp(lambda x: f(x, bias), (x,), (v,)),
        "jvp bias": lambda f: torch.func.jvp(lambda bias: f(x, bias), (bias,), (w,)),
        "jvp of grad": lambda f: torch.func.jvp(torch.func.grad(total(f)), (x, bias), (v, w)),
        "grad of grad": lambda f: torch.func.grad(lambda x: torch.func.grad(total(f))(x, bias).sum())(x),
        "vmap": lambda f: torch.func.vmap(f, (0, None))(torch.stack([x, v]), bias),
        "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(total(f)), (0, None))(
            torch.stack([x, v]), bias
        ),
    }
    for transform in transforms.values():
        torch.testing.assert_close(transform(packed), transform(exact), rtol=1e-3, atol=1e-3)


def test_forward_mode():
    weight = experts()
    x, offsets = inputs((2, 0, 3, 1))
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        out = grouped_linear_4bit(forward_ad.make_dual(x, tangent), weight, offsets)
        got = forward_ad.unpack_dual(out).tangent
    torch.testing.assert_close(got, loop(tangent, weight.dequantize(), offsets), rtol=1e-4, atol=1e-4)


def test_rows_of_no_expert_do_not_reach_the_gradient_of_the_bias():
    weight = experts()
    x, _ = inputs((2, 2, 2, 2))
    offsets = torch.tensor([1, 2, 3, 4, 6], dtype=torch.int32)
    bias = torch.zeros(E, N, requires_grad=True)
    grad = torch.ones(8, N)
    grad[[0, 6, 7]] = float("nan")
    grouped_linear_4bit(x, weight, offsets, bias).backward(grad)
    assert torch.equal(bias.grad, torch.tensor([1.0, 1, 1, 2])[:, None].expand(E, N))


@pytest.mark.parametrize(("dynamic", "name"), [(False, "nf4"), (True, "nf4 double"), (True, "int4")])
def test_it_compiles_to_one_graph(dynamic, name):
    torch._dynamo.reset()
    weight = experts(**OPTIONS[name])

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def step(x, offsets, bias):
        return grouped_linear_4bit(x * 2, weight, offsets, bias).sin()

    for counts in ((3, 0, 9, 1), (5, 5, 0, 1)):
        x, offsets = inputs(counts)
        bias = torch.randn(E, N)
        got, want = x.clone().requires_grad_(), x.clone().requires_grad_()
        out = step(got, offsets, bias)
        out.sum().backward()
        reference = loop(want * 2, weight.dequantize(), offsets, bias).sin()
        reference.sum().backward()
        torch.testing.assert_close(out, reference, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-3, atol=1e-3)


def test_a_compiled_transform_is_refused_or_left_to_eager_mode():
    weight = experts()
    x, offsets = inputs((3, 0, 2, 1))

    def gradient(v):
        return torch.func.grad(lambda u: grouped_linear_4bit(u, weight, offsets).sum())(v)

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(gradient, backend="eager")(x), gradient(x))
    torch._dynamo.reset()  # which else knows that it cannot trace this
    with pytest.raises(Exception, match=r"torch\.func inside torch.compile"):
        torch.compile(gradient, backend="eager", fullgraph=True)(x)


def test_refusals():
    weight = experts()
    x, offsets = inputs((1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"^\[grouped_linear_4bit\] offsets: got shape \[4\], want \[5\]"):
        grouped_linear_4bit(x, weight, offsets[1:])
    with pytest.raises(
        ValueError, match=r"^\[grouped_linear_4bit\] offsets: got 9 at index 4, want ascending"
    ):
        grouped_linear_4bit(x, weight, offsets + torch.tensor([0, 0, 0, 0, 5], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"^\[grouped_linear_4bit\] bias: got shape \[48\], want \[4, 48\]"):
        grouped_linear_4bit(x, weight, offsets, torch.zeros(N))
    with pytest.raises(ValueError, match=r"^\[grouped_linear_4bit\] weight: got QuantizedTensor"):
        grouped_linear_4bit(x, weight[0], offsets)
    with pytest.raises(TypeError, match=r"^\[grouped_linear_4bit\] weight: got Tensor, want a 3-D Quant"):
        grouped_linear_4bit(x, torch.zeros(E, N, K), offsets)
    with pytest.raises(TypeError, match=r"^\[grouped_linear_4bit\] x: got list, want a tensor"):
        grouped_linear_4bit([1.0], weight, offsets)
    with pytest.raises(TypeError, match=r"^\[grouped_linear_4bit\] bias: got list, want a tensor"):
        grouped_linear_4bit(x, weight, offsets, [1.0])
    with pytest.raises(RuntimeError, match=r"want qbits.functional.grouped_linear_4bit"):
        qbits.ops.grouped_linear_4bit(
            x.requires_grad_(), offsets, weight.codes, weight.absmax, "nf4", 64, N, K
        )


def test_plan():
    assert grouped_linear_4bit_plan("nf4", 8, 64, 64, m=5).startswith("8 experts in turn")
    hopper = {"compute_capability": (9, 0), "sm_count": 132}
    assert grouped_linear_4bit_plan("nf4", 8, 14336, 4096, m=8, **hopper).startswith("stream")
    assert grouped_linear_4bit_plan("nf4", 8, 14336, 4096, m=4096, **hopper).startswith("wgmma")
    with pytest.raises(ValueError, match=r"^\[grouped_linear_4bit_plan\] sizes"):
        grouped_linear_4bit_plan("nf4", 0, 64, 64)


GROUPED_MM = {"F.grouped_mm": F.grouped_mm, "torch._grouped_mm": torch._grouped_mm}


@pytest.mark.parametrize("function", GROUPED_MM.values(), ids=GROUPED_MM.keys())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_grouped_mm_reads_the_packed_weight(function, dtype, options, device):
    weight = experts(device, dtype, **options)
    x, offsets = inputs((3, 0, 9, 1), device=device, dtype=dtype)
    dense = weight.dequantize(torch.float32)
    with Ops() as counted:
        out = function(x, weight.transpose(-2, -1), offs=offsets[1:])
        mT = function(x, weight.mT, offs=offsets[1:])
    assert counted.ran == {"grouped_linear_4bit": 2}
    want = loop(x.float(), dense, offsets)
    torch.testing.assert_close(out.float(), want, rtol=2e-2, atol=0.1 if dtype == torch.bfloat16 else 1e-4)
    assert torch.equal(out, mT)
    # Weights that are stored the other way round, [E, in, out].
    y = torch.randn(13, N, device=device).to(dtype)
    with Ops() as counted:
        out = function(y, weight, offs=offsets[1:])
    assert counted.ran == {"grouped_linear_4bit_grad_x": 1}
    want = loop(y.float(), dense.transpose(1, 2), offsets)
    torch.testing.assert_close(out.float(), want, rtol=2e-2, atol=0.1 if dtype == torch.bfloat16 else 1e-4)


def test_grouped_mm_is_differentiable():
    weight = experts(dtype=torch.bfloat16)
    x, offsets = inputs((3, 0, 9, 1), dtype=torch.bfloat16)
    got, want = x.clone().requires_grad_(), x.clone().requires_grad_()
    with Ops() as counted:
        F.grouped_mm(got, weight.transpose(-2, -1), offs=offsets[1:]).sum().backward()
    assert counted.ran == {"grouped_linear_4bit": 1, "grouped_linear_4bit_grad_x": 1}
    loop(want, weight.dequantize(), offsets).sum().backward()
    torch.testing.assert_close(got.grad.float(), want.grad.float(), rtol=2e-2, atol=0.1)


def test_grouped_mm_compiles_to_one_graph():
    torch._dynamo.reset()
    weight = nn.Parameter(experts(dtype=torch.bfloat16), requires_grad=False)
    x, offsets = inputs((3, 0, 9, 1), dtype=torch.bfloat16)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(x, weight, offs):
        return F.grouped_mm(x * 2, weight.transpose(-2, -1), offs=offs).sin()

    got, want = x.clone().requires_grad_(), x.clone().requires_grad_()
    with Ops() as counted:
        out = step(got, weight, offsets[1:])
        out.sum().backward()
    assert counted.ran == {"grouped_linear_4bit": 1, "grouped_linear_4bit_grad_x": 1}
    reference = F.grouped_mm(want * 2, weight.transpose(-2, -1), offs=offsets[1:]).sin()
    reference.sum().backward()
    assert torch.equal(out, reference)
    torch.testing.assert_close(got.grad, want.grad, rtol=0.02, atol=0.02)


def test_one_expert_is_a_packed_matrix(options):
    weight = experts(**options)
    dense = weight.dequantize()
    for index in (0, 2, -1, torch.tensor(1)):
        one = weight[index]
        assert isinstance(one, qbits.QuantizedTensor) and one.is_4bit_matrix
        assert torch.equal(one.dequantize(), dense[index])
        with Ops() as counted:
            F.linear(torch.ones(2, K), one)
        assert counted.ran["linear_4bit"] == 1 and not counted.ran["dequantize_4bit"]
    for one, want in zip(weight, dense, strict=True):
        assert isinstance(one, qbits.QuantizedTensor) and torch.equal(one.dequantize(), want)
    with pytest.raises(IndexError):
        weight[E]
    straddling = qbits.quantize(torch.randn(3, 5, 7), "nf4")  # blocks do not end with experts
    assert torch.equal(straddling[1], straddling.dequantize()[1])


def test_the_transpose_is_like_any_view(options):
    weight = experts(**options)
    dense = weight.dequantize()
    view = weight.transpose(1, 2)
    assert isinstance(view, TransposedExperts)
    assert view.shape == (E, K, N) and view.stride() == dense.transpose(1, 2).stride()
    assert view.dtype == torch.float32 and not view.is_contiguous() and options["format"] in repr(view)
    assert torch.equal(view + 0, dense.transpose(1, 2))
    assert torch.equal(torch.bmm(torch.ones(E, 1, K), view), torch.bmm(torch.ones(E, 1, K), dense.mT))
    assert isinstance(view.transpose(1, 2), qbits.QuantizedTensor)
    assert torch.equal(copy.deepcopy(view), dense.mT)
    assert torch.equal(torch.cat([view, view]), torch.cat([dense.mT, dense.mT]))
    assert torch.equal(weight.transpose(0, 1), dense.transpose(0, 1))
    with pytest.raises(IndexError):
        weight.transpose(1, 5)
    with pytest.raises(IndexError):
        weight.select(3, 0)
    torch._foreach_mul_([view], 2)
    again = experts(**options)
    again.copy_(dense * 2)
    assert torch.equal(weight.dequantize(), again.dequantize())
    view[1].zero_()  # a view of the view
    assert not weight.dequantize()[1].any() and weight.dequantize()[0].any()


def test_what_grouped_mm_has_no_kernel_for_is_dense():
    weight = experts(dtype=torch.bfloat16, format="int8")
    x, offsets = inputs((3, 0, 9, 1), dtype=torch.bfloat16)
    out = F.grouped_mm(x, weight.transpose(-2, -1), offs=offsets[1:])
    torch.testing.assert_close(out, F.grouped_mm(x, weight.dequantize().transpose(-2, -1), offs=offsets[1:]))
    packed = experts(dtype=torch.bfloat16)
    batch = torch.randn(E, 16, K, dtype=torch.bfloat16)  # as many rows for each expert: a plain batch
    out = F.grouped_mm(batch, packed.transpose(-2, -1))
    torch.testing.assert_close(out, F.grouped_mm(batch, packed.dequantize().transpose(-2, -1)))


@pytest.mark.parametrize("function", GROUPED_MM.values(), ids=GROUPED_MM.keys())
def test_in_inference_mode(function):
    weight = experts()
    x, offsets = inputs((3, 0, 9, 1))
    want = loop(x, weight.dequantize(), offsets)
    with torch.inference_mode(), Ops() as counted:
        out = function(x, weight.transpose(-2, -1), offs=offsets[1:])
        each = torch.cat([F.linear(rows, weight[e]) for e, rows in enumerate(x.split((3, 0, 9, 1)))])
        grouped = grouped_linear_4bit(x, weight, offsets)
    assert counted.ran == {"grouped_linear_4bit": 2, "linear_4bit": 4}
    for got in (out, each, grouped):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
def test_grouped_mm_refuses_offsets_of_another_dtype(dtype):
    x, offsets = inputs((3, 0, 9, 1))
    with pytest.raises(TypeError, match=r"^\[grouped_linear_4bit\] offsets: got (int64|float32), want int32"):
        F.grouped_mm(x, experts().transpose(-2, -1), offs=offsets[1:].to(dtype))
