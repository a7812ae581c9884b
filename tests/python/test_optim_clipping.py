"""Clipping within the step: by the norm of all gradients, and by percentiles of a parameter's own."""

import copy
import math

import pytest
import torch

from optim_cases import gradients, parameter
from qbits import optim

SHAPES = ((300,), (20, 30), (), (0, 4), (70, 80))
DTYPES = (torch.float32, torch.bfloat16, torch.float32, torch.float32, torch.bfloat16)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    return torch.device(request.param)


def make_params(place):
    return [parameter(s, d, place, seed=i) for i, (s, d) in enumerate(zip(SHAPES, DTYPES, strict=True))]


def set_grads(params, t, factor=1.0):
    for i, param in enumerate(params):
        (grad,) = gradients(param.shape, 1, seed=100 * t + i)
        param.grad = (factor * grad).to(param.device, param.dtype)


@pytest.mark.parametrize("most", [0.1, 1e6])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "AdamW8bit"])
def test_the_norm_of_all_gradients_is_clipped(name, most, place):
    # float32: torch rounds norms of bfloat16 gradients, and what it clips, to bfloat16.
    ours, theirs = ([torch.nn.Parameter(p.detach().float()) for p in make_params(place)] for _ in range(2))
    optimizer = getattr(optim, name)(ours, lr=1e-2, max_grad_norm=most)
    reference = getattr(optim, name)(theirs, lr=1e-2)
    for t in range(5):
        set_grads(ours, t, 10.0**t)
        set_grads(theirs, t, 10.0**t)
        torch.nn.utils.clip_grad_norm_(theirs, most)
        optimizer.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
    set_grads(ours, 9)
    grads = [param.grad.clone() for param in ours]
    optimizer.step()
    assert all(torch.equal(param.grad, grad) for param, grad in zip(ours, grads, strict=True))


def test_scaled_gradients_are_clipped_by_their_true_norm(place):
    ours, scaled = ([parameter((300,), device=place)] for _ in range(2))
    one, other = (optim.SGD(p, lr=0.1, max_grad_norm=0.5) for p in (ours, scaled))
    other.grad_scale, other.found_inf = torch.tensor(512.0, device=place), torch.zeros((), device=place)
    for t in range(3):
        set_grads(ours, t, 0.01 if t == 1 else 1.0)
        scaled[0].grad = ours[0].grad * 512
        one.step()
        other.step()
    torch.testing.assert_close(ours[0], scaled[0])
    before = scaled[0].detach().clone()
    other.found_inf = torch.ones((), device=place)
    scaled[0].grad[0] = math.inf
    other.step()
    assert torch.equal(scaled[0], before) and other.skipped() == 0


def test_a_norm_that_is_not_finite_is_no_step(place):
    params = make_params(place)
    optimizer = optim.AdamW(params, max_grad_norm=1.0)
    set_grads(params, 0)
    optimizer.step()
    before = [param.detach().clone() for param in params]
    for bad in (math.nan, math.inf):
        set_grads(params, 1)
        params[1].grad[3, 3] = bad
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    assert optimizer.skipped() == 2 and float(optimizer.state[params[0]]["step"]) == 1
    optimizer.max_grad_norm = None  # may be changed between steps
    optimizer.step()
    assert not torch.equal(params[0], before[0])


def model(norms, percentile, t):
    """The factor of step t, from 1: of the norms of the last 100 steps so far, the last one included."""
    last = sorted(norm for norm in norms[max(0, t - 100) : t] if norm > 0)
    index = min(percentile * len(last) // 100, len(last) - 1)
    return min(1.0, last[index] / norms[t - 1])


@pytest.mark.parametrize("percentile", [1, 5, 50, 99])
def test_percentiles_of_norms(percentile, place):
    torch.manual_seed(0)
    sizes = torch.exp(torch.randn(2, 150))
    params = [parameter((8,), device=place), parameter((40,), device=place)]
    # One step of 1 along the gradient: the parameter moves by what is left of it.
    optimizer = optim.SGD(params, lr=1.0, momentum=0.0, percentile_clipping=percentile)
    for t in range(1, 151):
        before = [param.detach().clone() for param in params]
        for param, size in zip(params, sizes[:, t - 1], strict=True):
            param.grad = torch.full_like(param, float(size) / math.sqrt(param.numel()))
        optimizer.step()
        for param, start, norms in zip(params, before, sizes.tolist(), strict=True):
            want = norms[t - 1] * model(norms, percentile, t)
            assert float((start - param.detach()).norm()) == pytest.approx(want, rel=1e-3, abs=1e-5)
    vector = optimizer.state[params[0]]["gnorm_vec"]  # in the places bitsandbytes has them
    torch.testing.assert_close(vector[150 % 100].cpu(), sizes[0, 149].square())


def test_percentiles_leave_norms_that_are_not_finite_out(place):
    params = [parameter((300,), device=place), parameter((5,), device=place)]
    optimizer = optim.AdamW([{"params": params[:1], "percentile_clipping": 5}, {"params": params[1:]}])
    set_grads(params, 0)
    optimizer.step()
    history = optimizer.state[params[0]]["gnorm_vec"].clone()
    assert "gnorm_vec" not in optimizer.state[params[1]]
    params[0].grad[7] = math.nan
    optimizer.step()
    assert torch.equal(optimizer.state[params[0]]["gnorm_vec"], history) and optimizer.skipped() == 1
    assert bool(params[0].isfinite().all())


@pytest.mark.parametrize("percentile", [1, 30, 99])
def test_gradients_of_zero_freeze_no_parameter(percentile, place):
    torch.manual_seed(1)
    sizes = torch.exp(torch.randn(90))
    sizes[[0, 1, 2, *range(10, 80, 2)]] = 0.0
    param = parameter((8,), device=place)
    optimizer = optim.SGD([param], lr=1.0, percentile_clipping=percentile)
    for t, size in enumerate(sizes.tolist(), 1):
        before = param.detach().clone()
        param.grad = torch.full_like(param, size / math.sqrt(8))
        optimizer.step()
        want = size * model(sizes.tolist(), percentile, t) if size > 0 else 0.0
        assert float((before - param.detach()).norm()) == pytest.approx(want, rel=1e-3, abs=1e-5)
        assert size == 0 or want > 0
    assert int((optimizer.state[param]["gnorm_vec"] > 0).sum()) == int((sizes > 0).sum())


def test_clipped_runs_resume_bit_for_bit(place):
    params = make_params(place)
    optimizer = optim.AdamW8bit(params, max_grad_norm=1.0, percentile_clipping=20, min_8bit_size=0)
    for t in range(5):
        set_grads(params, t)
        optimizer.step()
    again = copy.deepcopy(optimizer)
    copies = again.param_groups[0]["params"]
    fresh = [torch.nn.Parameter(param.detach().clone()) for param in params]
    loaded = optim.AdamW8bit(fresh, max_grad_norm=1.0)
    loaded.load_state_dict(optimizer.state_dict())
    for t in range(5, 8):
        for own, resumed in ((params, optimizer), (copies, again), (fresh, loaded)):
            set_grads(own, t)
            resumed.step()
    for a, b, c in zip(params, copies, fresh, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_overrides_and_late_parameters(place):
    params, alone = make_params(place)[:2], make_params(place)[:2]
    optim.override(params[0], percentile_clipping=30)
    together = optim.SGD(params, lr=0.1)
    apart = [optim.SGD([alone[0]], lr=0.1, percentile_clipping=30), optim.SGD([alone[1]], lr=0.1)]
    for t in range(4):
        for own in (params, alone):
            set_grads(own, t, 2.0**t)
        if t == 0:
            params[1].grad = alone[1].grad = None
        together.step()
        for optimizer in apart:
            optimizer.step()
    for a, b in zip(params, alone, strict=True):
        assert torch.equal(a, b)


def test_muon_clips_all_gradients(place):
    params, others = ([parameter((30, 40), device=place)] for _ in range(2))
    clipped, plain = optim.Muon(params, max_grad_norm=0.5), optim.Muon(others)
    for t in range(3):
        set_grads(params, t, 10.0**t)
        others[0].grad = params[0].grad * (0.5 / params[0].grad.norm())
        clipped.step()
        plain.step()
    torch.testing.assert_close(params[0], others[0], rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match=r"\[Muon\] percentile_clipping: got 5, want 100"):
        optim.Muon(params, percentile_clipping=5)


def test_arguments_without_sense_are_refused():
    for value in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"\[AdamW\] max_grad_norm: got"):
            optim.AdamW([parameter((3,))], max_grad_norm=value)
    for value in (0, 101, 2.5):
        with pytest.raises(ValueError, match=r"\[AdamW\] percentile_clipping: got"):
            optim.AdamW([parameter((3,))], percentile_clipping=value)
    param = torch.nn.Parameter(torch.ones(4, 4))
    param.grad = torch.ones(4, 4).to_sparse()
    with pytest.raises(TypeError, match="grad: got a sparse gradient"):
        optim.AdamW([param], max_grad_norm=1.0).step()


@pytest.mark.gpu
def test_nothing_waits_and_graphs_follow():
    place = torch.device("cuda")
    params, eager = make_params(place), make_params(place)
    options = {"max_grad_norm": 0.5, "percentile_clipping": 50}
    captured, plain = (optim.AdamW(p, **options) for p in (params, eager))
    for own, optimizer in ((params, captured), (eager, plain)):
        set_grads(own, 0)
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # which forbids to wait
        captured.step()
    for t in range(1, 4):
        for own, optimizer in ((params, None), (eager, plain)):
            for i, param in enumerate(own):
                (grad,) = gradients(param.shape, 1, seed=100 * t + i)
                param.grad.copy_(grad)
            graph.replay() if optimizer is None else optimizer.step()
    for a, b in zip(params, eager, strict=True):
        torch.testing.assert_close(a, b)
