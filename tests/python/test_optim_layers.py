"""Optimizers that scale the step of a tensor, rounding at random, compensation, overrides, and embeddings."""

import copy
import pickle

import pytest
import torch

from optim_cases import gradients, parameter
from qbits import nn, optim

SHAPES = [(), (300,), (70, 130), (8193,), (40_000,)]


class ClippedAdam(optim.Adam):
    """As bitsandbytes' LAMB: no trust ratio, but updates clipped to a part of the parameter's norm."""

    SCALING, DECAY = "max_unorm", "after"

    def _hyperparameters(self, group):
        return {**super()._hyperparameters(group), "scaling": 0.02}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    return torch.device(request.param)


def adam_update(state, g, t, betas, eps):
    m, v = state
    m.mul_(betas[0]).add_((1 - betas[0]) * g)
    v.mul_(betas[1]).add_((1 - betas[1]) * g * g)
    return (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)


def lamb(p, state, g, t):
    u = adam_update(state, g, t, (0.9, 0.999), 1e-6) + 0.1 * p
    ratio = p.norm() / u.norm() if p.norm() > 0 and u.norm() > 0 else 1.0
    return p - 0.01 * ratio * u


def lars(p, state, g, t):
    ratio = 0.02 * p.norm() / (g.norm() + 0.1 * p.norm()) if p.norm() > 0 and g.norm() > 0 else 1.0
    step = ratio * (g + 0.1 * p)
    state[0].copy_(step if t == 1 else 0.9 * state[0] + step)
    return p - 0.5 * state[0]


def clipped(p, state, g, t):
    u = adam_update(state, g, t, (0.9, 0.999), 1e-8)
    factor = 0.02 * p.norm() / u.norm()
    return (p - 0.01 * min(float(factor), 1.0) * u) * (1 - 0.01 * 0.1)


CASES = {
    "LAMB": (lambda p, **o: optim.LAMB(p, lr=0.01, weight_decay=0.1, **o), lamb),
    "LARS": (
        lambda p, **o: optim.LARS(p, lr=0.5, momentum=0.9, weight_decay=0.1, trust_coefficient=0.02, **o),
        lars,
    ),
    "max_unorm": (lambda p, **o: ClippedAdam(p, lr=0.01, weight_decay=0.1, **o), clipped),
}


@pytest.mark.parametrize("name", CASES)
def test_layers_are_scaled_as_in_the_papers(name, place):
    make, formula = CASES[name]
    params = [parameter(shape, device=place, seed=i) for i, shape in enumerate(SHAPES)]
    doubles = [param.detach().cpu().double() for param in params]
    states = [[torch.zeros_like(double) for _ in range(2)] for double in doubles]
    optimizer = make(params)
    for t in range(1, 51):
        for i, param in enumerate(params):
            (grad,) = gradients(param.shape, 1, seed=100 * t + i)
            param.grad = grad.to(place)
            doubles[i] = formula(doubles[i], states[i], grad.double(), t)
        optimizer.step()
    for param, double in zip(params, doubles, strict=True):
        torch.testing.assert_close(param.detach().cpu().double(), double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_first_step_in_8_bits_is_the_one_in_32(name, place):
    make, _ = CASES[name]
    pair = [parameter(5000, device=place) for _ in range(2)]
    for bits, param in zip((32, 8), pair, strict=True):
        optimizer = make([param], optim_bits=bits, min_8bit_size=0)
        param.grad = next(gradients(5000, 1)).to(place)
        optimizer.step()
    torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", CASES)
def test_zeros_and_elements_that_are_not_finite(name, bits, place):
    make, _ = CASES[name]
    params = [torch.nn.Parameter(torch.zeros(600, device=place)), parameter(600, device=place)]
    optimizer = make(params, optim_bits=bits, min_8bit_size=0)
    params[0].grad = torch.ones_like(params[0])
    params[1].grad = torch.ones_like(params[1])
    params[1].grad[5] = float("nan")
    before = params[1].detach().clone()
    optimizer.step()
    assert all(param.isfinite().all() for param in params) and (params[0] != 0).all()
    assert params[1][5] == before[5] and (params[1][300:] != before[300:]).all()
    assert optimizer.skipped() == 1


def test_without_a_gradient_nothing_is_scaled(place):
    param = parameter(300, device=place)
    optimizer = optim.LARS([param], weight_decay=0.0)
    param.grad = torch.zeros_like(param)
    before = param.detach().clone()
    optimizer.step()
    assert torch.equal(param, before)


def test_arguments_of_lars():
    with pytest.raises(ValueError, match=r"\[LARS\] trust_coefficient: got 0, want above 0"):
        optim.LARS([parameter(3)], trust_coefficient=0)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", CASES)
def test_the_cpu_and_the_gpu_agree(name, bits, gpu):
    make, _ = CASES[name]
    both = []
    for place in ("cpu", gpu):
        params = [parameter(n, device=place, seed=n) for n in (1, 300, 70_000, 1_000_003)]
        optimizer = make(params, optim_bits=bits, min_8bit_size=0)
        for param in params:
            param.grad = next(gradients(param.shape, 1, seed=param.numel())).to(place)
        optimizer.step()
        both.append(params)
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-6, atol=1e-7)


# --- Stochastic rounding ---------------------------------------------------------------------------------


def rounded(place, steps=400, seed=0, stochastic=True, n=1000):
    param = torch.nn.Parameter(torch.ones(n, dtype=torch.bfloat16, device=place))
    optimizer = optim.SGD([param], lr=1e-4, stochastic_rounding=stochastic, seed=seed)
    param.grad = torch.ones_like(param)
    for _ in range(steps):
        optimizer.step()
    return param.detach().cpu()


def test_small_steps_count_on_average(place):
    assert (rounded(place, stochastic=False) == 1).all()
    moved = rounded(place).float()
    assert abs(float(moved.mean()) - (1 - 400 * 1e-4)) < 2e-3


def test_rounding_repeats_itself_and_follows_its_seed(place):
    assert torch.equal(rounded(place, 20), rounded(place, 20))
    assert not torch.equal(rounded(place, 20), rounded(place, 20, seed=1))
    assert torch.equal(rounded(place, 20), rounded("cpu", 20))


def test_tensors_and_steps_are_rounded_apart(place):
    params = [torch.nn.Parameter(torch.ones(1000, dtype=torch.bfloat16, device=place)) for _ in range(2)]
    optimizer = optim.SGD(params, lr=1e-3, stochastic_rounding=True)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    first = [param.detach().clone() for param in params]
    assert not torch.equal(*first)
    for param in params:
        param.data.fill_(1.0)
    optimizer.step()
    assert not torch.equal(first[0], params[0])


# --- Kahan summation -------------------------------------------------------------------------------------


def train(place, dtype, steps=300, **options):
    """A model of bfloat16 whose steps are far below the last bit of most parameters: where they end."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 48), torch.nn.Tanh(), torch.nn.Linear(48, 8)).bfloat16()
    x = torch.randn(64, 24).bfloat16().to(place)
    y = torch.randn(64, 8).bfloat16().to(place)
    model = model.to(place, dtype)
    optimizer = optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0, **options)
    for _ in range(steps):
        narrow = {name: param.bfloat16() for name, param in model.named_parameters()}
        out = torch.func.functional_call(model, narrow, x)
        optimizer.zero_grad()
        (out - y).float().square().mean().backward()
        optimizer.step()
    ends = []
    for param in model.parameters():
        rest = optimizer.state[param].get("kahan_comp", torch.zeros_like(param))
        ends.append((param.detach().float() + rest.float()).flatten())
    return torch.cat(ends)


def test_bfloat16_follows_float32(place):
    start, wide = train(place, torch.float32, 0), train(place, torch.float32)
    moved = (wide - start).norm()
    assert (train(place, torch.bfloat16, kahan_sum=True) - wide).norm() < 0.03 * moved
    assert (train(place, torch.bfloat16) - wide).norm() > 0.9 * moved


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_add_up(dtype, place):
    for kahan in (False, True):
        param = torch.nn.Parameter(torch.ones(1000, dtype=dtype, device=place))
        optimizer = optim.SGD([param], lr=1e-4, kahan_sum=kahan)
        param.grad = torch.ones_like(param)
        for _ in range(400):
            optimizer.step()
        assert ((param - 0.96).abs() < 0.003).all() == kahan and (param == 1).all() != kahan


def test_float32_takes_no_compensation(place):
    params = [parameter(300, device=place) for _ in range(2)]
    pair = [optim.AdamW([p], kahan_sum=on) for p, on in zip(params, (False, True), strict=True)]
    for grad in gradients(300, 3):
        for param, optimizer in zip(params, pair, strict=True):
            param.grad = grad.to(place)
            optimizer.step()
    assert torch.equal(*params) and "kahan_comp" not in pair[1].state[params[1]]


def test_groups_and_parameters_have_their_own_compensation(place):
    params, alone = ([parameter(5000, torch.bfloat16, place, seed=i) for i in range(4)] for _ in range(2))
    optim.override(params[2], kahan_sum=True)
    optim.override(params[3], kahan_sum=False)
    groups = [{"params": params[::2]}, {"params": params[1::2], "kahan_sum": True}]
    together = optim.AdamW8bit(groups)
    with_sums = (False, True, True, False)
    apart = [optim.AdamW8bit([p], kahan_sum=on) for p, on in zip(alone, with_sums, strict=True)]
    for grad in gradients(5000, 4, torch.bfloat16):
        for param in (*params, *alone):
            param.grad = grad.to(place)
        for optimizer in (together, *apart):
            optimizer.step()
    for a, b, on, own in zip(params, alone, with_sums, apart, strict=True):
        assert torch.equal(a, b) and ("kahan_comp" in together.state[a]) == on
        assert not on or torch.equal(together.state[a]["kahan_comp"], own.state[b]["kahan_comp"])


@pytest.mark.parametrize("late", [True, False])
def test_compensation_that_is_turned_on_and_off(late, place):
    """Copies go on as the original does, and parameters without gradients have it, too."""
    params = [parameter((70, 70), torch.bfloat16, place, seed=i) for i in range(3)]
    optimizer = optim.AdamW8bit(params, kahan_sum=not late)
    for param in params:
        param.grad = torch.full_like(param, 1e-3)
    optimizer.step()
    optimizer.param_groups[0]["kahan_sum"] = late
    again = copy.deepcopy(optimizer)
    others = again.param_groups[0]["params"]
    for t in range(5):
        for own in (params, others):
            for i, param in enumerate(own):
                param.grad = None if t == 0 and i == 1 else torch.full_like(param, 1e-3)
        optimizer.step()
        again.step()
        assert all(("kahan_comp" in optimizer.state[param]) == late for param in params)
    for a, b in zip(params, others, strict=True):
        assert torch.equal(a, b) and optimizer.state[a].keys() == again.state[b].keys()


def test_compensation_ends_with_what_it_was_of(place):
    """Of a parameter that overflowed and was mended nothing stays behind."""
    param = torch.nn.Parameter(torch.full((300,), 65504.0, dtype=torch.float16, device=place))
    optimizer = optim.SGD([param], lr=1.0, maximize=True, kahan_sum=True)
    param.grad = torch.full((300,), 60000.0, dtype=torch.float16, device=place)
    optimizer.step()
    assert param.isinf().all() and not optimizer.state[param]["kahan_comp"].any()
    param.data.fill_(1.0)
    optimizer.param_groups[0]["lr"] = 1e-4
    param.grad.fill_(-1.0)
    for _ in range(400):
        optimizer.step()
    assert ((param - 0.96).abs() < 0.003).all()


def test_not_with_stochastic_rounding(place):
    param = parameter(300, torch.bfloat16, place)
    optim.override(param, kahan_sum=True)
    param.grad = torch.ones_like(param)
    optimizer = optim.AdamW([param], stochastic_rounding=True)
    with pytest.raises(ValueError, match=r"\[AdamW\] kahan_sum: got True, want False with stochastic"):
        optimizer.step()


# --- Overrides and embeddings ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["override", "manager", "module"])
def test_single_parameters_keep_32_bits(how, place):
    layer = torch.nn.Linear(100, 100, device=place)
    other = torch.nn.Linear(100, 100, device=place)
    manager = optim.GlobalOptimManager.get_instance()
    if how == "override":
        optim.override(layer.weight, optim_bits=32)
    elif how == "manager":
        manager.register_parameters(layer.parameters())
        manager.override_config(layer.weight, "optim_bits", 32)
    else:
        manager.register_module_override(layer, "weight", {"optim_bits": 32})
    optimizer = optim.AdamW8bit([*layer.parameters(), *other.parameters()])
    layer(other(torch.randn(3, 100, device=place))).sum().backward()
    optimizer.step()
    assert optimizer.state[layer.weight]["state1"].dtype == torch.float32
    assert optimizer.state[other.weight]["state1"].dtype == torch.uint8


def test_single_parameters_have_their_own_rate(place):
    params = [parameter(300, device=place) for _ in range(4)]
    optim.override(params[1], lr=0.5, weight_decay=0.0)
    together = optim.AdamW(params[:2], lr=0.1)
    apart = [optim.AdamW([params[2]], lr=0.1), optim.AdamW([params[3]], lr=0.5, weight_decay=0.0)]
    for grad in gradients(300, 3):
        for param in params:
            param.grad = grad.to(place)
        for optimizer in (together, *apart):
            optimizer.step()
    assert torch.equal(params[0], params[2]) and torch.equal(params[1], params[3])
    again = optim.AdamW(params[:2], lr=7.0)
    again.load_state_dict(together.state_dict())
    for optimizer in (again, *apart):
        optimizer.step()
    assert torch.equal(params[0], params[2]) and torch.equal(params[1], params[3])


def test_groups_have_their_own_bits(place):
    params = [parameter(5000, device=place) for _ in range(2)]
    optimizer = optim.AdamW([{"params": params[:1], "optim_bits": 8}, {"params": params[1:]}])
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert [optimizer.state[param]["state1"].dtype for param in params] == [torch.uint8, torch.float32]


@pytest.mark.parametrize("kind", [nn.Embedding, nn.StableEmbedding])
def test_embeddings(kind, place):
    embedding = kind(1000, 64, padding_idx=3, device=place)
    bound = (6 / (1000 + 64)) ** 0.5
    assert embedding.weight.abs().max() <= bound and embedding.weight.std() > bound / 2
    assert (embedding.weight[3] == 0).all()
    indices = torch.tensor([[1, 2, 3], [4, 5, 999]], device=place)
    out = embedding(indices)
    want = torch.nn.functional.embedding(indices, embedding.weight)
    if kind is nn.StableEmbedding:
        want = torch.nn.functional.layer_norm(want, (64,))
    torch.testing.assert_close(out, want)
    for module in (embedding, copy.deepcopy(embedding), pickle.loads(pickle.dumps(embedding))):
        optimizer = optim.AdamW8bit(module.parameters())
        module(indices).sum().backward()
        optimizer.step()
        assert optimizer.state[module.weight]["state1"].dtype == torch.float32


def test_a_stable_embedding_of_16_bits(place):
    embedding = nn.StableEmbedding(10, 8, device=place, dtype=torch.bfloat16)
    out = embedding(torch.tensor([1, 2], device=place))
    assert out.dtype == torch.bfloat16 and embedding.norm.weight.dtype == torch.float32
    assert embedding.half()(torch.tensor([1, 2], device=place)).dtype == torch.float16
