"""Muon: torch's in 32 bits, close to it in 8."""

import copy
import math

import pytest
import torch

from optim_cases import gradients, parameter
from qbits import optim

SHAPES = ((16, 16), (40, 72), (40, 72), (96, 33), (1, 50), (64, 128))
OPTIONS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    return torch.device(request.param)


def make_params(place, dtype=torch.float32):
    return [parameter(shape, dtype, place, seed=i) for i, shape in enumerate(SHAPES)]


def step(optimizer, params, t):
    for i, param in enumerate(params):
        (grad,) = gradients(param.shape, 1, param.dtype, seed=100 * t + i)
        param.grad = grad.to(param.device)
    optimizer.step()


@pytest.mark.parametrize(
    "changes", [{}, {"nesterov": False, "ns_steps": 3}, {"adjust_lr_fn": "match_rms_adamw"}]
)
def test_32_bits_are_those_of_torch(changes, place):
    ours, theirs = make_params(place), make_params(place)
    optimizer = optim.Muon(ours, **OPTIONS, **changes)
    reference = torch.optim.Muon(theirs, **OPTIONS, **changes)
    before = [param.detach().clone() for param in ours]
    for t in range(10):
        step(optimizer, ours, t)
        step(reference, theirs, t)
    for a, b, start in zip(ours, theirs, before, strict=True):
        # Products of bfloat16 amplify the last bits in which sums of gradients differ.
        assert (a - b).norm() <= 0.02 * (b - start).norm()


def test_updates_are_nearly_orthogonal(place):
    param = parameter((48, 80), device=place)
    before = param.detach().clone()
    optimizer = optim.Muon8bit([param], lr=1.0, weight_decay=0.0, min_8bit_size=0)
    step(optimizer, [param], 0)
    values = torch.linalg.svdvals((before - param).detach())
    assert values.min() > 0.5 and values.max() < 1.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_8_bits_follow_32(dtype, place):
    wide, narrow = make_params(place), make_params(place)
    pair = [optim.Muon32bit(wide, **OPTIONS), optim.Muon8bit(narrow, **OPTIONS, min_8bit_size=0)]
    start = [param.detach().clone() for param in wide]
    for t in range(10):
        step(pair[0], wide, t)
        step(pair[1], narrow, t)
    for a, b, c in zip(wide, narrow, start, strict=True):
        assert pair[1].state[b]["state1"].dtype == torch.uint8
        assert torch.cosine_similarity((a - c).flatten(), (b - c).flatten(), dim=0) > 0.99


@pytest.mark.parametrize("rounding", ["stochastic_rounding", "kahan_sum"])
@pytest.mark.parametrize("bits", [32, 8])
def test_runs_resume_bit_for_bit(bits, rounding, place):
    params = make_params(place, torch.bfloat16)
    optimizer = optim.Muon(params, **OPTIONS, optim_bits=bits, min_8bit_size=0, **{rounding: True})
    for t in range(3):
        step(optimizer, params, t)
    copies = [torch.nn.Parameter(param.detach().clone()) for param in params]
    resumed = optim.Muon(copies, lr=5.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for t in range(3, 6):
        step(optimizer, params, t)
        step(resumed, copies, t)
    for a, b in zip(params, copies, strict=True):
        assert torch.equal(a, b) and float(resumed.state[b]["step"]) == 6
        for key, value in optimizer.state[a].items():
            assert torch.equal(value, resumed.state[b][key])


@pytest.mark.parametrize("bits", [32, 8])
def test_grad_scale_found_inf_and_maximize(bits, place):
    sets = [make_params(place) for _ in range(3)]
    one, other, up = (
        optim.Muon(p, **{**OPTIONS, "weight_decay": w}, optim_bits=bits, min_8bit_size=0, maximize=m)
        for p, w, m in zip(sets, (0.1, 0.1, 0.1), (False, False, True), strict=True)
    )
    other.grad_scale, other.found_inf = torch.tensor(256.0, device=place), torch.zeros((), device=place)
    for t in range(2):
        step(one, sets[0], t)
        for params, factor, optimizer in ((sets[1], 256.0, other), (sets[2], -1.0, up)):
            for own, param in zip(params, sets[0], strict=True):
                own.grad = param.grad * factor
            optimizer.step()
    for a, b, c in zip(*sets, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    other.found_inf = torch.ones((), device=place)
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(*sets[:2], strict=True))
    assert float(other.state[sets[1][0]]["step"]) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("bits", [32, 8])
def test_matrices_whose_gradients_are_not_finite_are_left(bits, bad, place):
    params, others = make_params(place), make_params(place)
    pair = [optim.Muon(p, **OPTIONS, optim_bits=bits, min_8bit_size=0) for p in (params, others)]
    pair[0].check_finite = True
    for params_, optimizer in zip((params, others), pair, strict=True):
        step(optimizer, params_, 0)
    # One of two of a shape, and one with blocks that are not full.
    places = {1: (3, 4), 3: (95, 32)}
    before = [
        [param.detach().clone(), *(pair[0].state[param][key].clone() for key in pair[0].state[param])]
        for param in params
    ]
    keys = list(pair[0].state[params[0]])
    for i, (param, other) in enumerate(zip(params, others, strict=True)):
        (param.grad,) = (grad.to(place) for grad in gradients(param.shape, 1, seed=50 + i))
        other.grad = None if i in places else param.grad.clone()
        if i in places:
            param.grad[places[i]] = bad
    skipped = sum(params[i].numel() for i in places)
    with pytest.raises(FloatingPointError, match=rf"\[Muon\] gradients: got {skipped} elements"):
        pair[0].step()
    pair[1].step()
    for i, (param, other) in enumerate(zip(params, others, strict=True)):
        now = [param, *(pair[0].state[param][key] for key in keys)]
        for key, a, b in zip(["param", *keys], now, before[i], strict=True):
            assert torch.equal(a, b) == (i in places and key != "step"), (i, key)
        torch.testing.assert_close(param, other, rtol=1e-2, atol=1e-3)
    pair[0].found_inf = torch.ones((), device=place)
    pair[0].step()
    assert pair[0].skipped() == skipped
    pair[0].found_inf = None
    step(pair[0], params, 1)
    assert all(bool(param.isfinite().all()) for param in params)


def test_random_bits_depend_on_no_other_matrix(place):
    results = []
    for both in (False, True):
        params = [parameter((40, 60), torch.bfloat16, place, seed=i) for i in range(2)]
        optimizer = optim.Muon(params, stochastic_rounding=True)
        for param in params if both else params[1:]:
            param.grad = torch.ones_like(param)
        optimizer.step()
        results.append(params[1].detach().clone())
    assert torch.equal(*results)


def test_groups_overrides_and_learning_rates(place):
    params, alone = make_params(place)[:3], make_params(place)[:3]
    optim.override(params[2], ns_steps=2, momentum=0.5)
    groups = [{"params": params[:1], "lr": torch.tensor(0.1, device=place)}, {"params": params[1:]}]
    together = optim.Muon(groups, **OPTIONS)
    changes = ({"lr": 0.1}, {}, {"ns_steps": 2, "momentum": 0.5})
    apart = [optim.Muon([p], **{**OPTIONS, **c}) for p, c in zip(alone, changes, strict=True)]
    for t in range(3):
        step(together, params, t)
        for optimizer, param, other in zip(apart, alone, params, strict=True):
            param.grad = other.grad
            optimizer.step()
    for a, b in zip(params, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_parameters_without_gradients_or_elements(place):
    params = [
        parameter((4, 8), device=place),
        parameter((0, 8), device=place),
        parameter((4, 8), device=place),
    ]
    optimizer = optim.Muon(params)
    step(optimizer, params[:2], 0)
    assert params[2] not in optimizer.state
    optim.Muon(params).step()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"momentum": 1.0}, "momentum: got 1.0, want at least 0 and below 1"),
        ({"ns_steps": 100}, "ns_steps: got 100, want 1 to 99"),
        ({"ns_coefficients": (1.0, 2.0)}, "ns_coefficients: got"),
        ({"adjust_lr_fn": "other"}, "adjust_lr_fn: got other, want original or match_rms_adamw"),
        ({"eps": 0.0}, "eps: got"),
    ],
)
def test_arguments_without_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=r"\[Muon\] " + message):
        optim.Muon([parameter((3, 4))], **changes)
    with pytest.raises(ValueError, match=r"\[Muon8bit\] params: got one of shape \[3\], want matrices"):
        optim.Muon8bit([parameter((3,))])


@pytest.mark.gpu
def test_captured_steps():
    place = torch.device("cuda")
    params, eager = make_params(place), make_params(place)
    captured, plain = (optim.Muon8bit(p, **OPTIONS, min_8bit_size=0) for p in (params, eager))
    step(captured, params, 0)
    step(plain, eager, 0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for _ in range(3):
        graph.replay()
        plain.step()
    for a, b in zip(params, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
