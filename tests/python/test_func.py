"""torch.func over layers with 4-bit weights: every transform gives what it gives for the dense layer."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

import qbits
from qbits.nn import Embedding4bit, Linear4bit

OPTIONS = {"nf4": {}, "nf4 double": {"double_quant": True}, "int4": {"format": "int4"}}


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS.keys())
def pair(request):
    """A model with 4-bit weights, and the same one dense."""
    torch.manual_seed(0)
    model = nn.Sequential(Linear4bit(16, 24, **request.param), nn.Tanh(), Linear4bit(24, 8, **request.param))
    dense = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8))
    for i in (0, 2):
        dense[i].weight.data, dense[i].bias.data = model[i].dequantize(), model[i].bias.detach().clone()
    return model, dense


def batch(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss(model):
    return lambda x: model(x).square().sum()


def loss_of_bias(model):
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return lambda bias, x: functional_call(model, {**parameters, "2.bias": bias}, (x,)).square().sum()


def with_forward_ad(model):
    with forward_ad.dual_level():
        out = model(forward_ad.make_dual(batch(5, 16), batch(5, 16, seed=2)))
        return forward_ad.unpack_dual(out).tangent


def forward_ad_over_backward(model):
    with forward_ad.dual_level():
        x = batch(5, 16).requires_grad_()
        (first,) = torch.autograd.grad(model(forward_ad.make_dual(x, batch(5, 16, seed=2))).sum(), x)
        return forward_ad.unpack_dual(first).tangent


def batched_gradients(model):
    x = batch(5, 16).requires_grad_()
    return torch.autograd.grad(model(x), x, batch(6, 5, 8, seed=2), is_grads_batched=True)[0]


TRANSFORMS = {
    "grad": lambda m: grad(loss(m))(batch(5, 16)),
    "grad of grad": lambda m: grad(lambda x: grad(loss(m))(x).square().sum())(batch(5, 16)),
    "vjp": lambda m: vjp(m, batch(5, 16))[1](batch(5, 8))[0],
    "jvp": lambda m: jvp(m, (batch(5, 16),), (batch(5, 16, seed=2),))[1],
    "jacrev": lambda m: jacrev(m)(batch(16)),
    "jacfwd": lambda m: jacfwd(m)(batch(16)),
    "hessian": lambda m: hessian(loss(m))(batch(16)),
    "vmap": lambda m: vmap(m)(batch(5, 16)),
    "vmap without grad": lambda m: torch.no_grad()(vmap(m))(batch(5, 16)),
    "vmap over the last dimension": lambda m: vmap(m, in_dims=1, out_dims=1)(batch(16, 5)),
    "vmap over the middle one": lambda m: vmap(m, in_dims=1)(batch(3, 5, 16)),
    "vmap over what requires a gradient": lambda m: vmap(m)(batch(5, 16).requires_grad_()),
    "vmap of vmap": lambda m: vmap(vmap(m))(batch(2, 3, 16)),
    "gradients of each sample": lambda m: vmap(grad(loss(m)))(batch(5, 16)),
    "in chunks": lambda m: vmap(grad(loss(m)), chunk_size=2)(batch(5, 16)),
    "gradient of the bias": lambda m: grad(loss_of_bias(m))(batch(8), batch(5, 16)),
    "of the bias for each sample": lambda m: vmap(grad(loss_of_bias(m)), (None, 0))(batch(8), batch(5, 16)),
    "a batch of biases": lambda m: vmap(loss_of_bias(m), (0, None))(batch(3, 8), batch(5, 16)),
    "gradient of a batch of biases": lambda m: vmap(grad(loss_of_bias(m)))(batch(3, 8), batch(3, 2, 16)),
    "jacobian of the bias": lambda m: jacfwd(loss_of_bias(m))(batch(8), batch(5, 16)),
    "forward-mode AD": with_forward_ad,
    "forward-mode AD over backward": forward_ad_over_backward,
    "batched gradients": batched_gradients,
    "linearize": lambda m: linearize(m.requires_grad_(False), batch(5, 16))[1](batch(5, 16, seed=2)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # torch's, in linearize
@pytest.mark.filterwarnings("error:There is a performance drop")
def test_is_that_of_the_dense_layer(transform, pair):
    model, dense = pair
    torch.testing.assert_close(transform(model), transform(dense), atol=1e-4, rtol=1e-4)


def test_linearize_refuses_parameters_that_require_grad(pair):
    with pytest.raises(RuntimeError, match=r"\[linear_4bit\] gradient: got an input that requires grad"):
        linearize(pair[0], batch(5, 16))[1](batch(5, 16))


def test_a_tensor_that_left_its_transform():
    layer, leaked = Linear4bit(16, 8), []
    grad(lambda x: (leaked.append(x), x.sum())[1])(batch(2, 16))
    assert torch.equal(layer(leaked[0]), layer(batch(2, 16)))


def test_embedding():
    embedding = Embedding4bit(50, 16)
    indices = torch.randint(0, 50, (5, 7))
    assert torch.equal(vmap(embedding)(indices), embedding(indices))


def test_a_batch_of_weights():
    weights = [qbits.quantize(batch(8, 16, seed=i)) for i in range(3)]
    codes, absmax = (torch.stack([getattr(w, name) for w in weights]) for name in ("codes", "absmax"))
    x = batch(5, 16)
    product = vmap(lambda c, a: qbits.ops.linear_4bit(x, c, a, None, "nf4", 64, 8, 16))(codes, absmax)
    assert torch.equal(product, torch.stack([qbits.functional.linear_4bit(x, w) for w in weights]))
