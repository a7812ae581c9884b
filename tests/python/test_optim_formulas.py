"""Each algorithm against its formula, bit for bit, and against torch.optim in float64."""

import itertools

import pytest
import torch

import optim_cases
from optim_cases import DTYPES, HYPERPARAMETERS, SIZES, gradients, make, parameter
from optim_reference import Model
from qbits import optim


def same_bits(got, want):
    got = got.detach().cpu()
    assert got.dtype == want.dtype and got.shape == want.shape
    different = (got != want) & ~(got.isnan() & want.isnan())
    assert not different.any(), (
        f"{different.sum()} of {got.numel()}: {got[different][:4]}, want {want[different][:4]}"
    )


def check(param, state, model):
    same_bits(param.float(), model.param)
    assert ("kahan_comp" in state) == (model.rest is not None)
    if model.rest is not None:
        assert state["kahan_comp"].dtype == param.dtype
        same_bits(state["kahan_comp"].float(), model.rest)
    for key, absmax, want in (("state1", "absmax1", model.state1), ("state2", "absmax2", model.state2)):
        if key not in state:
            continue
        if model.is_8bit:
            codes, scales = want()
            same_bits(state[key], codes)
            same_bits(state[absmax], scales)
        else:
            same_bits(state[key], want())


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_every_size_follows_the_formula(name, bits, device):
    params = [parameter(size, device=device, seed=size) for size in SIZES]
    optimizer = make(name, params, optim_bits=bits, min_8bit_size=0)
    models = [Model(name, param, HYPERPARAMETERS[name], bits == 8) for param in params]
    steps = [list(gradients(size, 3, seed=size)) for size in SIZES]
    for t in range(3):
        for param, model, grads in zip(params, models, steps, strict=True):
            param.grad = grads[t].to(device)
            model.step(grads[t])
        optimizer.step()
        for param, model in zip(params, models, strict=True):
            check(param, optimizer.state[param], model)
    assert optimizer.skipped() == 0


@pytest.mark.parametrize("kahan", [False, True])
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_dtypes_may_be_mixed(name, bits, kahan, device):
    if not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("this torch wants gradients in the dtype of their parameters")
    size = 3 * 256 + 17
    pairs = list(itertools.product(DTYPES, DTYPES))
    params = [parameter(size, dtype, device, seed=i) for i, (dtype, _) in enumerate(pairs)]
    models = [Model(name, param, HYPERPARAMETERS[name], bits == 8, kahan) for param in params]
    optimizer = make(name, params, optim_bits=bits, min_8bit_size=0, kahan_sum=kahan)
    for t in range(3):
        for i, (param, model, (_, dtype)) in enumerate(zip(params, models, pairs, strict=True)):
            (grad,) = gradients(size, 1, dtype, seed=100 * t + i)
            param.grad_dtype = None  # lets a gradient have another dtype than its parameter
            param.grad = grad.to(device)
            model.step(grad)
        optimizer.step()
    for param, model in zip(params, models, strict=True):
        check(param, optimizer.state[param], model)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("bits", [32, 8])
def test_nesterov(nesterov, bits, device):
    changes = {"nesterov": nesterov, "dampening": 0.0}
    param = parameter(1000, device=device)
    optimizer = make("SGD", [param], optim_bits=bits, min_8bit_size=0, **changes)
    model = Model("SGD", param, {**HYPERPARAMETERS["SGD"], **changes}, bits == 8)
    for grad in gradients(1000, 4):
        param.grad = grad.to(device)
        optimizer.step()
        model.step(grad)
    check(param, optimizer.state[param], model)


TORCH = {
    "Adam": {},
    "AdamW": {},
    "RMSprop": {},
    "Adagrad": {"initial_accumulator_value": 0.1},
    "SGD": {},
    "SGD nesterov": {"dampening": 0.0, "nesterov": True},
    "SGD plain": {"momentum": 0.0, "dampening": 0.0},
    "AdamW maximize": {"maximize": True},
    "Adam no decay": {"weight_decay": 0.0},
}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    """The CPU, whose instruction sets the tests above show to agree, and the GPU."""
    return torch.device(request.param)


@pytest.mark.parametrize("case", TORCH)
def test_a_thousand_steps_of_torch_in_float64(case, place):
    name = case.split()[0]
    shapes = [(), (1,), (5, 60), (0,), (521,)]
    params = [parameter(shape, device=place, seed=i) for i, shape in enumerate(shapes)]
    doubles = [torch.nn.Parameter(param.detach().cpu().double()) for param in params]
    optimizer = make(name, params, **TORCH[case])
    reference = getattr(torch.optim, name)(doubles, **{**HYPERPARAMETERS[name], **TORCH[case]})
    steps = zip(*[gradients(shape, 1000, seed=i) for i, shape in enumerate(shapes)], strict=True)
    for grads in steps:
        for param, double, grad in zip(params, doubles, grads, strict=True):
            param.grad, double.grad = grad.to(place), grad.double()
        optimizer.step()
        reference.step()
    for param, double in zip(params, doubles, strict=True):
        # Each step rounds a parameter once; quotients of small numbers add to that.
        torch.testing.assert_close(param.detach().cpu().double(), double.detach(), rtol=2e-5, atol=2e-5)


def lion_in_float64(params, grads, means, lr, betas, weight_decay):
    beta1, beta2 = betas
    for p, g, m in zip(params, grads, means, strict=True):
        p.mul_(1 - lr * weight_decay).sub_(lr * (beta1 * m + (1 - beta1) * g).sign())
        m.mul_(beta2).add_((1 - beta2) * g)


def test_a_thousand_steps_of_lion_in_float64(place):
    param = parameter(4099, device=place)
    double, mean = param.detach().cpu().double(), torch.zeros(4099, dtype=torch.float64)
    h = HYPERPARAMETERS["Lion"]
    optimizer = make("Lion", [param])
    for grad in gradients((4099,), 1000):
        param.grad = grad.to(place)
        optimizer.step()
        lion_in_float64([double], [grad.double()], [mean], h["lr"], h["betas"], h["weight_decay"])
    # A sum next to zero may get the other sign: counted, each an error of two learning rates.
    wrong = (param.detach().cpu().double() - double).abs() > h["lr"]
    assert wrong.sum() <= 4


def test_a_thousand_steps_of_ademamix_in_float64(place):
    h = {**HYPERPARAMETERS["AdEMAMix"], "t_alpha": 500, "t_beta3": 800}
    param = parameter(1000, device=place)
    optimizer = make("AdEMAMix", [param], t_alpha=500, t_beta3=800)
    p = param.detach().cpu().double()
    m, n, v = (torch.zeros(1000, dtype=torch.float64) for _ in range(3))
    beta1, beta2, beta3 = h["betas"]
    for t, grad in enumerate(gradients((1000,), 1000), 1):
        param.grad = grad.to(place)
        optimizer.step()
        g = grad.double()
        alpha = min(t / 500, 1) * h["alpha"]
        half_life = torch.tensor([beta1, beta3], dtype=torch.float64).log()
        done = min(t / 800, 1)
        slow = float(torch.exp(1 / ((1 - done) / half_life[0] + done / half_life[1])))
        m, n, v = m * beta1 + (1 - beta1) * g, n * slow + (1 - slow) * g, v * beta2 + (1 - beta2) * g * g
        u = (m / (1 - beta1**t) + alpha * n) / ((v / (1 - beta2**t)).sqrt() + h["eps"])
        p = p * (1 - h["lr"] * h["weight_decay"]) - h["lr"] * u
    torch.testing.assert_close(param.detach().cpu().double(), p, rtol=1e-4, atol=1e-4)


def test_8_bits_train_as_32_do(place):
    """Least squares by both: the same loss within a few percent."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(512, 64, generator=generator), torch.randn(64, 96, generator=generator)
    y = (x @ w).to(place)
    x = x.to(place)
    losses = []
    for bits in (32, 8):
        param = torch.nn.Parameter(torch.zeros(64, 96, device=place))
        optimizer = optim.AdamW([param], lr=0.05, optim_bits=bits, weight_decay=0.0)
        for _ in range(150):
            loss = (x @ param - y).square().mean()
            param.grad = torch.autograd.grad(loss, param)[0]
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < 1.3 * losses[0] + 1e-3


def test_every_optimizer_has_a_formula():
    others = {"Optimizer", "Options", "GlobalOptimManager", "override", "to_bitsandbytes"}
    others |= {"flat_state", "rows_of_state"}
    names = {name.removeprefix("Paged") for name in optim.__all__}
    classes = {name.removesuffix("8bit").removesuffix("32bit") for name in names} - others
    assert classes == {*optim_cases.HYPERPARAMETERS, "LAMB", "LARS", "Muon"}
