"""linear_int8_from_float, mostly as Linear8bit calls it: gradients that reach the float weight."""

import pytest
import torch
from torch import nn

import qbits
from case_parts import DTYPES
from qbits.functional import linear_int8_from_float
from qbits.nn import Linear8bit


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def rounded(weight, dtype=torch.float32):
    """W as its codes have it, with the gradient of W."""
    codes = qbits.quantize(weight.detach(), "int8").dequantize(dtype)
    return weight.to(dtype) + (codes - weight.to(dtype)).detach()


@pytest.mark.parametrize("weight_dtype", DTYPES)
def test_second_gradients_reach_the_float_weight(weight_dtype):
    layer = Linear8bit(32, 16, dtype=weight_dtype, has_fp16_weights=True)
    x = torch.randn(3, 32, requires_grad=True)

    def second(product):
        (grad,) = torch.autograd.grad(product().pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), (x, layer.weight))

    got = second(lambda: layer(x))
    y = layer(x).detach()

    def straight_through():
        dense = nn.functional.linear(x, rounded(layer.weight), layer.bias.float())
        return dense + (y - dense).detach()

    for a, b in zip(got, second(straight_through), strict=True):
        # A gradient of 16 bits is a sum of two, each rounded, which may cancel: no bound for single elements.
        tolerance = 1e-5 if a.dtype == torch.float32 else 1e-2
        assert (a.float() - b.float()).norm() <= tolerance * b.float().norm()


def test_torch_func_through_the_float_weight():
    layer = Linear8bit(24, 8, has_fp16_weights=True, bias=False)
    weight, x, batch = layer.weight.detach(), torch.randn(24), torch.randn(5, 24)
    tangents = torch.randn(24), torch.randn(8, 24)

    def product(x, weight):
        return linear_int8_from_float(x, weight)

    _, got = torch.func.jvp(product, (x, weight), tangents)
    want = tangents[0] @ rounded(weight).T + x @ tangents[1].T
    torch.testing.assert_close(got, want)
    got = torch.func.vmap(torch.func.grad(lambda w, v: product(v, w).sum()), (None, 0))(weight, batch)
    torch.testing.assert_close(got, batch[:, None].expand(5, 8, 24))
    assert torch.equal(torch.func.vmap(product, (0, None))(batch, weight), product(batch, weight))


def test_training_a_float_weight():
    layer = Linear8bit(32, 4, has_fp16_weights=True, threshold=6.0)
    target, x = torch.randn(4, 32) / 6, torch.randn(256, 32)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(120):
        loss = (layer(x) - x @ target.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_float_weight_that_is_not_finite_raises(bad):
    layer = Linear8bit(32, 4, has_fp16_weights=True)
    layer.weight.data[1, 2] = bad
    with pytest.raises(ValueError, match=r"\[linear_int8_from_float\] weight: got a NaN or an inf"):
        layer(torch.randn(2, 32))
