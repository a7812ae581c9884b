"""qbits.functional of LLM.int8(): gradients, torch.func, torch.compile, autocast and what is refused."""

import functools
import gc

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import cases
import qbits.functional as F
import reference
from case_parts import THRESHOLDS
from qbits import ops

N, K = 24, 40
# The products: all of x in 8 bits, its outliers apart, x as it is.
PRODUCTS = ({}, {"threshold": 6.0}, {"activation_bits": 16})


def randn(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def make(device="cpu", dtype=torch.float32):
    """Codes, scales, bias, and the dense weight they stand for."""
    rows = F.quantize_int8_rowwise(randn(N, K, seed=1))
    codes, scales = rows.codes.to(device), rows.scales.to(device)
    return codes, scales, randn(N, seed=2).to(device, dtype), F.dequantize_int8_rowwise(codes, scales, dtype)


def outliers(x):
    """x with a column beyond 6."""
    x = x.clone()
    x[..., 3] = 20.0
    return x


@pytest.mark.parametrize("shape", [(40,), (0, 40), (5, 40), (2, 3, 40), (2, 1, 3, 40)])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_there_and_back(shape, threshold, device):
    x = outliers(randn(*shape)).to(device)
    rows = F.quantize_int8_rowwise(x, threshold)
    assert isinstance(rows, F.Int8Rows) and rows.codes.shape == shape and rows.scales.shape == shape[:-1]
    y = F.dequantize_int8_rowwise(rows.codes, rows.scales)
    assert y.dtype == torch.float32
    found = rows.outlier_columns[: rows.outlier_count.item()].tolist()
    assert found == ([3] if threshold and x.numel() else [])
    x[..., found] = 0.0
    # Half a step of 2 / 254, and what rounding adds.
    assert ((y - x).abs() <= rows.scales[..., None] * (0.5 / 127 + 1e-6)).all()
    for dtype in cases.DTYPES:
        assert torch.equal(F.dequantize_int8_rowwise(rows.codes, rows.scales, dtype), y.to(dtype))


@pytest.mark.parametrize("shape", [(40,), (0, 40), (5, 0), (5, 40), (2, 1, 3, 40)])
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_rows_and_columns_at_once(shape, threshold, device):
    x = (outliers(randn(*shape)) if shape[-1] else randn(*shape)).to(device)
    x.requires_grad_()  # no part of it
    double = F.quantize_int8_double(x, threshold)
    assert isinstance(double, F.Int8Double)
    rows = F.quantize_int8_rowwise(x, threshold)
    assert torch.equal(double.row_codes, rows.codes) and torch.equal(double.row_scales, rows.scales)
    assert torch.equal(double.outlier_columns, rows.outlier_columns)
    assert torch.equal(double.outlier_count, rows.outlier_count)
    codes, scales = F.quantize_int8_colwise(x, threshold)
    assert torch.equal(double.column_codes, codes) and torch.equal(double.column_scales, scales)
    assert codes.shape == shape and scales.shape == shape[-1:]
    x = x.detach()
    kept = x.masked_fill(x.abs() >= threshold, 0.0) if threshold else x
    assert ((codes * scales / 127 - kept).abs() <= scales * (0.5 / 127 + 1e-6)).all()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1e-7, 1e4, 1e30, 1e34])
def test_rows_of_any_magnitude(dtype, scale, device):
    codes, scales, _, _ = make()
    x = (randn(5, K) * scale).clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    for threshold in (0.0, max(scale, torch.finfo(torch.float32).smallest_normal)):
        rows = F.quantize_int8_rowwise(x.to(device), threshold)
        want, want_scales, columns = reference.quantize_int8_rowwise(x, threshold)
        assert torch.equal(rows.codes.cpu(), want) and torch.equal(rows.scales.cpu(), want_scales)
        assert rows.outlier_columns[: rows.outlier_count.item()].tolist() == columns.tolist()
        out = F.linear_int8(x.to(device), codes.to(device), scales.to(device), None, threshold).cpu()
        exact, bound = reference.linear_int8(x, codes, scales, None, threshold)
        near = (out.double() - exact.double()).abs() <= bound
        assert (near | (out == exact.to(dtype))).all()  # what float16 cannot hold is infinite in both


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("threshold", [6.0, 6.01, 1.2e-38, 3e38, float(np.nextafter(np.float32(6), 7))])
def test_an_outlier_begins_at_the_threshold_as_a_float32(dtype, threshold, device):
    near = torch.tensor(threshold, dtype=dtype)
    near = near if near.isfinite() else torch.tensor(torch.finfo(dtype).max, dtype=dtype)
    around = [near.nextafter(torch.tensor(0, dtype=dtype)), near, near.nextafter(near * 0 + float("inf"))]
    x = torch.stack([sign * value for value in around for sign in (1, -1)])[None].to(device)
    rows = F.quantize_int8_rowwise(x, threshold)
    want = [i for i, value in enumerate(x[0].tolist()) if abs(value) >= np.float32(threshold)]
    assert rows.outlier_columns[: rows.outlier_count.item()].tolist() == want
    inliers = [abs(value) for i, value in enumerate(x[0].tolist()) if i not in want]
    assert rows.scales.item() == max(inliers, default=0.0)


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


def test_an_exported_program_that_returns_rows_can_be_saved(tmp_path):
    class Quantize(torch.nn.Module):
        def forward(self, x):
            return F.quantize_int8_rowwise(x, 6.0)

    x = outliers(randn(5, K))
    torch.export.save(torch.export.export(Quantize(), (x,)), tmp_path / "rows.pt2")
    rows = torch.export.load(tmp_path / "rows.pt2").module()(x)
    assert torch.equal(rows.codes, F.quantize_int8_rowwise(x, 6.0).codes)


def test_refusals_say_what_the_product_takes():
    codes, scales, bias, _ = make()
    with pytest.raises(TypeError, match=r"x: got float64, want float32, bfloat16, float16$"):
        F.linear_int8(randn(2, K).double(), codes, scales)
    with pytest.raises(ValueError, match=r"bias: got .*, want 1 dimension"):
        F.linear_int8(randn(2, K), codes, scales, bias[None])
    with pytest.raises(TypeError, match="dtype: got 'float32', want float32, bfloat16 or float16"):
        F.dequantize_int8_rowwise(codes, scales, "float32")
    with pytest.raises(TypeError, match="dtype: got None, want float32, bfloat16 or float16"):
        F.dequantize_int8_product(torch.zeros(N, N, dtype=torch.int32), scales, scales, dtype=None)
    for bad in (scales[:, None], scales[None]):
        with pytest.raises(ValueError, match=r"weight scales: got .*, want 1 dimension"):
            F.linear_int8(randn(2, K), codes, bad)
        with pytest.raises(ValueError, match=r"scales: got .*, want the shape \[24\]"):
            F.dequantize_int8_rowwise(codes, bad)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_the_steps_of_the_product(dtype, device):
    codes, scales, bias, _ = make(device, dtype)
    x = randn(2, 5, K).to(device, dtype)
    rows = F.quantize_int8_rowwise(x)
    dots = F.igemm(rows.codes, codes.mT.expand(2, K, N))
    out = F.dequantize_int8_product(dots, rows.scales, scales, bias, dtype)
    assert torch.equal(out, F.linear_int8(x, codes, scales, bias))


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


@pytest.mark.parametrize("bad", [None, [1.0], 3])
def test_what_is_no_tensor_is_a_type_error_that_names_it(bad):
    codes, scales, _, _ = make()
    x, dots = randn(5, K), torch.zeros(N, N, dtype=torch.int32)
    calls = {
        "[quantize_int8_rowwise] x": lambda: F.quantize_int8_rowwise(bad),
        "[quantize_int8_colwise] x": lambda: F.quantize_int8_colwise(bad),
        "[quantize_int8_double] x": lambda: F.quantize_int8_double(bad),
        "[dequantize_int8_rowwise] codes": lambda: F.dequantize_int8_rowwise(bad, scales),
        "[dequantize_int8_rowwise] scales": lambda: F.dequantize_int8_rowwise(codes, bad),
        "[dequantize_int8_product] dots": lambda: F.dequantize_int8_product(bad, scales, scales),
        "[dequantize_int8_product] row_scales": lambda: F.dequantize_int8_product(dots, bad, scales),
        "[dequantize_int8_product] column_scales": lambda: F.dequantize_int8_product(dots, scales, bad),
        "[linear_int8] x": lambda: F.linear_int8(bad, codes, scales),
        "[linear_int8] codes": lambda: F.linear_int8(x, bad, scales),
        "[linear_int8] scales": lambda: F.linear_int8(x, codes, bad),
    }
    if bad is not None:
        calls["[dequantize_int8_product] bias"] = lambda: F.dequantize_int8_product(dots, scales, scales, bad)
        calls["[linear_int8] bias"] = lambda: F.linear_int8(x, codes, scales, bad)
    for where, call in calls.items():
        with pytest.raises(TypeError) as raised:
            call()
        assert str(raised.value) == f"{where}: got {type(bad).__name__}, want a tensor"


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


def test_refusals_of_a_threshold():
    codes, scales, _, _ = make()
    x = randn(5, K)
    quantizers = ("quantize_int8_rowwise", "quantize_int8_colwise", "quantize_int8_double")
    calls = {op: functools.partial(getattr(F, op), x) for op in quantizers}
    calls["linear_int8"] = lambda t: F.linear_int8(x, codes, scales, None, t)
    for op, call in calls.items():
        call(6), call(0), call(np.float32(6))
        for bad in ("6", None, 1j):
            with pytest.raises(TypeError, match=rf"\[{op}\] threshold: got .*, want a number"):
                call(bad)
        for bad in (-1, float("nan"), float("inf"), 1e39, 10**400):
            # The double quantizer is two ops, of which the first refuses.
            name = "quantize_int8_rowwise" if op == "quantize_int8_double" else op
            with pytest.raises(ValueError, match=rf"\[{name}\] threshold: got .*, want 0 or a positive"):
                call(bad)
