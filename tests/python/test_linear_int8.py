"""linear_int8: gradients, torch.func, torch.compile, torch.export, autocast, and x as it is."""

import gc

import pytest
import torch
import torch._dynamo.testing
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import cases
import qbits.functional as F
import reference
from int8_operands import K, N, make, outliers, randn
from qbits import ops

# The products: all of x in 8 bits, its outliers apart, x as it is.
PRODUCTS = ({}, {"threshold": 6.0}, {"activation_bits": 16})


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("lead", [(), (0,), (5,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("options", PRODUCTS, ids=str)
def test_gradients_are_those_of_the_dequantized_weight(dtype, lead, options, device):
    codes, scales, bias, weight = make(device, dtype)
    x = outliers(randn(*lead, K)).to(device, dtype).requires_grad_()
    bias.requires_grad_()
    out = F.linear_int8(x, codes, scales, bias, **options)
    if "activation_bits" in options:
        same = ops.linear_int8_weight_only(x.detach(), codes, scales, bias.detach())
    else:
        same = ops.linear_int8(x.detach(), codes, scales, bias.detach(), options.get("threshold", 0.0))
    assert torch.equal(out, same)
    g = randn(*lead, N, seed=3).to(device, dtype)
    grad_x, grad_bias = torch.autograd.grad(out, (x, bias), g)
    assert grad_x.dtype == grad_bias.dtype == dtype
    want, bound = reference.product(g.cpu(), weight.cpu().mT)
    assert ((grad_x.cpu().double() - want).abs() <= bound).all()
    torch.testing.assert_close(grad_bias, g.reshape(-1, N).float().sum(0).to(dtype))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("count", [0, 1, 5, 16, 17, 40, 70, 200])
def test_rows_are_the_same_in_every_number_of_rows(dtype, count, device):
    rows = F.quantize_int8_rowwise(randn(136, 1040, seed=1).to(device))
    x = randn(300, 1040).clamp(-5, 5)
    x[::3, : 5 * count : 5] = 9.0  # in the first row, so that the columns are the same in all
    x, bias = x.to(device, dtype), randn(136, seed=2).to(device, dtype)
    want = F.linear_int8(x, rows.codes, rows.scales, bias, 6.0)
    for m in (1, 5, 16, 17, 33, 64, 65, 128, 200):
        assert torch.equal(F.linear_int8(x[:m], rows.codes, rows.scales, bias, 6.0), want[:m])


def test_gradients_of_one_input_and_of_none(device):
    codes, scales, bias, weight = make(device)
    x, g = randn(5, K).to(device), randn(5, N, seed=3).to(device)
    assert not F.linear_int8(x, codes, scales, bias).requires_grad
    (grad_bias,) = torch.autograd.grad(F.linear_int8(x, codes, scales, bias.requires_grad_()), bias, g)
    torch.testing.assert_close(grad_bias, g.sum(0))
    (grad_x,) = torch.autograd.grad(F.linear_int8(x.requires_grad_(), codes, scales), x, g)
    torch.testing.assert_close(grad_x, g @ weight)
    with torch.no_grad():
        assert not F.linear_int8(x, codes, scales, bias).requires_grad
    scales = scales.clone().requires_grad_()  # the weight is a constant
    assert not F.linear_int8(x.detach(), codes, scales).requires_grad
    out = F.linear_int8(x, codes, scales)
    assert torch.autograd.grad(out, scales, g, allow_unused=True) == (None,)


def test_gradients_of_gradients(device):
    codes, scales, _, weight = make(device)
    x = randn(5, K).to(device).requires_grad_()
    g = randn(5, N, seed=3).to(device).requires_grad_()
    (first,) = torch.autograd.grad(F.linear_int8(x, codes, scales), x, g, create_graph=True)
    second, third = (torch.autograd.grad(first.pow(3).sum(), g, create_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(second, 3 * (g @ weight).square() @ weight.T)
    torch.testing.assert_close(
        torch.autograd.grad(third.sum(), g)[0],
        6 * ((g @ weight) * weight.sum(0)) @ weight.T,
        atol=1e-3,
        rtol=1e-4,
    )


def test_no_dense_weight_is_kept_for_the_gradient():
    codes, scales = (t.clone() for t in make()[:2])
    x = randn(5, K).requires_grad_()
    out = F.linear_int8(x, codes, scales, threshold=6.0)
    saved = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.shape == (N, K)]
    assert not any(t.is_floating_point() and t.grad_fn is not None for t in saved)
    held = out.grad_fn.saved_tensors
    assert (
        len(held) == 2 and held[0].data_ptr() == codes.data_ptr() and held[1].data_ptr() == scales.data_ptr()
    )


class Layer(torch.nn.Module):
    """The product as torch.func sees it; with `dense`, the one whose derivatives it must have."""

    def __init__(self, options, dense=False):
        super().__init__()
        codes, scales, bias, self.weight = make()
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.bias = torch.nn.Parameter(bias)
        self.options, self.dense = options, dense

    def forward(self, x):
        out = F.linear_int8(x, self.codes, self.scales, self.bias, **self.options)
        if self.dense:
            linear = torch.nn.functional.linear(x, self.weight, self.bias)
            return linear + (out - linear).detach()  # the value of the one, the gradient of the other
        return out


def loss(layer):
    return lambda x: layer(x).square().sum()


def loss_of_bias(layer):
    return lambda bias, x: functional_call(layer, {"bias": bias}, (x,)).square().sum()


x1, x5, t5 = randn(K), outliers(randn(5, K)), randn(5, K, seed=5)
b3 = randn(3, N, seed=6)

TRANSFORMS = {
    "grad": lambda m: grad(loss(m))(x5),
    "grad of grad": lambda m: grad(lambda x: grad(loss(m))(x).square().sum())(x5),
    "vjp": lambda m: vjp(m, x5)[1](randn(5, N))[0],
    "jvp": lambda m: jvp(m, (x5,), (t5,))[1],
    "jacrev": lambda m: jacrev(m)(x1),
    "jacfwd": lambda m: jacfwd(m)(x1),
    "hessian": lambda m: hessian(loss(m))(x1),
    "vmap": lambda m: vmap(m)(x5),
    "vmap over the last dimension": lambda m: vmap(m, in_dims=1, out_dims=1)(x5.T),
    "gradients of each sample": lambda m: vmap(grad(loss(m)))(x5),
    "gradient of the bias": lambda m: grad(loss_of_bias(m))(b3[0], x5),
    "gradient of a batch of biases": lambda m: vmap(grad(loss_of_bias(m)))(b3, randn(3, 2, K)),
    "jacobian of the bias": lambda m: jacfwd(loss_of_bias(m))(b3[0], x5),
}


@pytest.mark.parametrize("options", PRODUCTS, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.filterwarnings("error:There is a performance drop")
def test_transforms_are_straight_through(transform, options):
    got, want = (transform(Layer(options, dense)) for dense in (False, True))
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)


def test_vmap_over_what_requires_a_gradient():
    codes, scales, bias, weight = make()
    x, biases = randn(3, K).requires_grad_(), randn(4, N).requires_grad_()
    out = vmap(lambda v: F.linear_int8(v, codes, scales, bias))(x)
    assert torch.equal(out, F.linear_int8(x, codes, scales, bias))
    (grad_x,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad_x, weight.sum(0).expand(3, K))
    out = vmap(lambda b: F.linear_int8(x[0], codes, scales, b))(biases)
    (grad_bias,) = torch.autograd.grad(out.sum(), biases)
    assert torch.equal(grad_bias, torch.ones(4, N))


@pytest.mark.parametrize("options", PRODUCTS, ids=str)
def test_vmap_over_no_elements(options):
    codes, scales, bias, _ = make()
    assert vmap(lambda v: F.linear_int8(v, codes, scales, bias, **options))(randn(0, 5, K)).shape == (0, 5, N)


def test_a_compiled_transform_is_refused_or_left_to_eager_mode():
    codes, scales, bias, weight = make()

    def gradient(v):
        return grad(lambda u: F.linear_int8(u, codes, scales, bias).sum())(v)

    x = randn(K)
    torch.testing.assert_close(torch.compile(gradient, backend="eager")(x), weight.sum(0))
    torch._dynamo.reset()  # which else knows that it cannot trace this
    with pytest.raises(Exception, match=r"torch\.func inside torch.compile"):
        torch.compile(gradient, backend="eager", fullgraph=True)(x)


def test_vmap_keeps_the_outliers_of_one_element_from_the_others(device):
    codes, scales, bias, _ = make(device)
    x = randn(3, 5, K).to(device)
    x[1, 2, 7] = 40.0
    apart = torch.stack([F.linear_int8(part, codes, scales, bias, 6.0) for part in x])
    assert torch.equal(vmap(lambda part: F.linear_int8(part, codes, scales, bias, 6.0))(x), apart)
    assert not torch.equal(F.linear_int8(x, codes, scales, bias, 6.0), apart)
    batch = torch.stack([codes, -codes, codes.flip(0)])
    product = vmap(lambda part, c: F.linear_int8(part, c, scales, bias))(x, batch)
    assert torch.equal(
        product, torch.stack([F.linear_int8(*pair, scales, bias) for pair in zip(x, batch, strict=True)])
    )


@pytest.mark.parametrize("options", PRODUCTS, ids=str)
@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_compiles_to_one_graph_with_its_gradient(options, place):
    codes, scales, bias, _ = make(place)
    bias.requires_grad_()

    def function(x):
        y = F.linear_int8(torch.tanh(x) * 8, codes, scales, bias, **options)
        rows = F.quantize_int8_rowwise(y, options.get("threshold", 0.0))
        return y, F.dequantize_int8_rowwise(rows.codes, rows.scales), rows.outlier_count

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    fast = torch.compile(function, fullgraph=True, dynamic=True, backend=counter)
    for m in (3, 5, 8, 130):
        x = outliers(randn(m, K)).to(place).requires_grad_()
        got, want = fast(x), function(x)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
        gradients = [torch.autograd.grad(y.square().sum(), (x, bias)) for y in (got[0], want[0])]
        torch.testing.assert_close(*gradients, atol=1e-2, rtol=1e-4)
    # Dynamo first takes a float for a variable and starts anew when the op wants its value.
    assert counter.frame_count <= 2


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("bias_requires_grad", [False, True])
@pytest.mark.parametrize("options", PRODUCTS[1:], ids=str)
def test_export(options, strict, bias_requires_grad, tmp_path):
    model = Layer(options)
    model.bias.requires_grad_(bias_requires_grad)
    rows = torch.export.Dim("rows", min=2, max=100)
    program = torch.export.export(model, (randn(3, K),), dynamic_shapes=({0: rows},), strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    for exported in (program.module(), torch.export.load(tmp_path / "model.pt2").module()):
        x = outliers(randn(7, K)).requires_grad_()
        y = exported(x)
        assert torch.equal(y, model(x))
        gradients = [torch.autograd.grad(f(x).square().sum(), x)[0] for f in (exported, model)]
        torch.testing.assert_close(*gradients)
        if bias_requires_grad:
            y.sum().backward()
            assert torch.equal(exported.bias.grad, torch.full((N,), 7.0))


def test_autocast_leaves_the_dtype_of_x(device):
    codes, scales, bias, weight = make(device)
    x, g = randn(5, K).to(device).requires_grad_(), randn(5, N, seed=3).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        out = F.linear_int8(x, codes, scales, bias)
        (grad_x,) = torch.autograd.grad(out, x, g)
    assert out.dtype == torch.float32
    torch.testing.assert_close(grad_x, (g.double() @ weight.double()).float())


def test_tensors_that_lie_in_any_order(device):
    codes, scales, bias, _ = make(device)
    x = randn(K, 5).to(device).T
    gaps = torch.stack([scales, scales], 1)[:, 0], torch.stack([bias, bias], 1)[:, 0]
    want = F.linear_int8(x.contiguous(), codes, scales, bias, 6.0)
    assert torch.equal(F.linear_int8(x, codes.T.contiguous().T, *gaps, 6.0), want)
    negative = torch._neg_view(x)
    assert negative.is_neg() and torch.equal(
        F.linear_int8(negative, codes, *gaps), F.linear_int8(-x, codes, *gaps)
    )
    for i in (1, 2, 3):
        arguments = [x, codes, scales, bias]
        arguments[i] = torch._neg_view(-arguments[i])
        assert arguments[i].is_neg() and torch.equal(F.linear_int8(*arguments, 6.0), want)


def test_x_as_it_is(device):
    codes, scales, bias, _ = make(device)
    x = outliers(randn(2, 5, K)).to(device)
    want, bound = reference.linear_int8_weight_only(x.cpu(), codes.cpu(), scales.cpu(), bias.cpu())
    out = F.linear_int8(x, codes, scales, bias, activation_bits=16)
    assert ((out.cpu().double() - want).abs() <= bound).all()
    gaps = torch.stack([x, x], -1)[..., 0], codes.T.contiguous().T, torch.stack([scales, scales], 1)[:, 0]
    assert torch.equal(F.linear_int8(*gaps, bias, activation_bits=16), out)
    assert torch.equal(F.linear_int8(torch._neg_view(-x), codes, scales, bias, activation_bits=16), out)
    assert torch.equal(F.linear_int8(x, codes, scales, torch._neg_view(-bias), activation_bits=16), out)
    assert torch.equal(vmap(lambda v: F.linear_int8(v, codes, scales, bias, activation_bits=16))(x), out)


def test_refusals_of_activation_bits():
    codes, scales, bias, _ = make()
    x = randn(5, K)
    for bad in (4, 32, 0, -8, 16.0, "16", None, True):
        with pytest.raises(ValueError, match=r"^\[linear_int8\] activation_bits: got .*, want 8 or 16$"):
            F.linear_int8(x, codes, scales, bias, activation_bits=bad)
    for threshold in (6.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"^\[linear_int8\] threshold: got .*, want 0 where"):
            F.linear_int8(x, codes, scales, bias, threshold, activation_bits=16)
    with pytest.raises(ValueError, match=r"bias: got .*, want 1 dimension"):
        F.linear_int8(x, codes, scales, bias[None], activation_bits=16)
    with pytest.raises(ValueError, match=r"weight scales: got .*, want 1 dimension"):
        F.linear_int8(x, codes, scales[None], activation_bits=16)
    with pytest.raises(TypeError, match=r"x: got float64, want float32, bfloat16, float16$"):
        F.linear_int8(x.double(), codes, scales, activation_bits=16)
