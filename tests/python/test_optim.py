"""Optimizers as torch's users know them: groups, closures, hooks, schedulers, saving, odd tensors."""

import copy
import io
import math
import pickle
import warnings

import pytest
import torch

import optim_cases
from optim_cases import HYPERPARAMETERS, gradients, make, parameter
from qbits import optim

NAMES = tuple(HYPERPARAMETERS)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    return torch.device(request.param)


def step(optimizer, params, seed=0, dtype=None):
    for i, param in enumerate(params):
        (grad,) = gradients(param.shape, 1, dtype or param.dtype, seed=seed + 7 * i)
        param.grad = grad.to(param.device)
    return optimizer.step()


def snapshot(optimizer, params):
    tensors = [param.detach().clone() for param in params]
    for param in params:
        tensors += [value.clone() for _, value in sorted(optimizer.state[param].items())]
    return tensors


def assert_equal(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())


# --- What is updated -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", NAMES)
def test_gaps_in_parameters_and_gradients(name, bits, place):
    shape = (37, 41)
    dense = parameter(shape, device=place)
    base = torch.zeros(41, 74, device=place)
    gappy = torch.nn.Parameter(base.t()[::2])
    gappy.data.copy_(dense.data)
    assert not gappy.is_contiguous()
    one, other = (make(name, [p], optim_bits=bits, min_8bit_size=0) for p in (dense, gappy))
    for grad in gradients(shape, 3):
        grad = grad.to(place)
        dense.grad = grad
        gappy.grad = torch.empty(41, 37, device=place).t().copy_(grad)
        one.step()
        other.step()
    assert torch.equal(dense, gappy) and (base.t()[1::2] == 0).all()
    assert_equal(snapshot(one, [dense])[1:], snapshot(other, [gappy])[1:])


def test_a_parameter_in_the_middle_of_memory(place):
    whole = torch.zeros(3000, device=place)
    inner = torch.nn.Parameter(whole[3:1503])
    aligned = torch.nn.Parameter(whole[3:1503].clone())
    for param in (inner, aligned):
        optimizer = optim.AdamW8bit([param], min_8bit_size=0)
        for grad in gradients(1500, 3):
            param.grad = grad.to(place)
            optimizer.step()
    assert torch.equal(inner, aligned)
    assert (whole[:3] == 0).all() and (whole[1503:] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_gradients_or_elements(name, place):
    params = [parameter(300, device=place, seed=i) for i in range(3)] + [parameter((0, 5), device=place)]
    optimizer = make(name, params)
    step(optimizer, params)
    before = snapshot(optimizer, params)
    params[1].grad = None
    optimizer.step()
    after = snapshot(optimizer, params)
    assert not torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert [float(optimizer.state[param]["step"]) for param in params] == [2, 1, 2, 2]
    late = make(name, params)
    step(late, params[:1])
    assert params[1] not in late.state


def test_no_gradient_at_all_is_no_step(place):
    optimizer = optim.AdamW([parameter(5, device=place)])
    assert optimizer.step() is None and not optimizer.state


def test_small_parameters_keep_32_bits(place):
    params = [parameter(size, device=place) for size in (4095, 4096)]
    optimizer = optim.AdamW8bit(params)
    step(optimizer, params)
    assert [optimizer.state[param]["state1"].dtype for param in params] == [torch.float32, torch.uint8]
    assert optimizer.state[params[1]]["absmax2"].shape == (16,)


def test_updates_are_known_to_autograd(place):
    param = parameter(8, device=place)
    loss = (param * param).sum()
    optimizer = optim.AdamW([param])
    step(optimizer, [param])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- Gradients that are not finite, and GradScaler -------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", NAMES)
def test_elements_that_are_not_finite_are_skipped_and_counted(name, bits, bad, place):
    if bad == 3e38 and name in ("Lion", "SGD"):
        pytest.skip("the square of the gradient is not in its formula")
    params = [parameter(700, device=place), parameter(700, device=place)]
    optimizer = make(name, params, optim_bits=bits, min_8bit_size=0)
    step(optimizer, params)
    before = snapshot(optimizer, params)
    for param, grad in zip(params, next(gradients((2, 700), 1)).to(place), strict=True):
        param.grad = grad.clone()
    params[0].grad[300] = bad
    optimizer.step()
    changed = before[0] != params[0]
    assert not changed[300] and changed[:256].any() and changed[512:].any()
    assert changed[256:512].any() == (bits == 32)
    assert optimizer.skipped() == 1
    assert all(bool(value.float().isfinite().all()) for value in snapshot(optimizer, params))
    assert float(optimizer.state[params[0]]["step"]) == 2


def test_raising_is_opt_in(place):
    param = parameter(10, device=place)
    optimizer = optim.AdamW([param], check_finite=True)
    step(optimizer, [param])
    param.grad[3] = math.nan
    with pytest.raises(FloatingPointError, match=r"\[AdamW\] gradients: got 1 elements that were not finite"):
        optimizer.step()
    param.grad[3] = 0
    optimizer.step()


@pytest.mark.parametrize("bits", [32, 8])
def test_grad_scale_and_found_inf(bits, place):
    params, scaled = ([parameter(600, device=place)] for _ in range(2))
    one, other = (optim.AdamW(p, optim_bits=bits, min_8bit_size=0) for p in (params, scaled))
    for grad in gradients(600, 3):
        params[0].grad, scaled[0].grad = grad.to(place), grad.to(place) * 1024
        other.grad_scale, other.found_inf = torch.tensor(1024.0, device=place), torch.zeros((), device=place)
        one.step()
        other.step()
    assert_equal(snapshot(one, params), snapshot(other, scaled))
    other.found_inf = torch.ones((), device=place)
    before = snapshot(other, scaled)
    other.step()
    assert_equal(snapshot(other, scaled), before)


def test_grad_scaler(place):
    param = parameter(64, device=place)
    optimizer = optim.AdamW([param], lr=0.1)
    scaler = torch.amp.GradScaler(place.type, init_scale=2.0**10)
    for factor, moved in ((1.0, True), (math.inf, False), (1.0, True)):
        before = param.detach().clone()
        scaler.scale((param * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(before, param) != moved
    assert float(optimizer.state[param]["step"]) == 2 and optimizer.skipped() == 0


# --- torch.optim.Optimizer -------------------------------------------------------------------------------


def test_groups_have_their_own_hyperparameters(place):
    pairs = [[parameter(300, device=place, seed=i) for i in range(2)] for _ in range(2)]
    (a, b), (c, d) = pairs
    together = optim.AdamW(
        [{"params": [a], "lr": 0.5, "betas": (0.5, 0.6)}, {"params": [b], "weight_decay": 0.3}]
    )
    apart = [optim.AdamW([c], lr=0.5, betas=(0.5, 0.6)), optim.AdamW([d], weight_decay=0.3)]
    for seed in range(3):
        step(together, [a, b], seed)
        c.grad, d.grad = a.grad, b.grad
        for optimizer in apart:
            optimizer.step()
    assert torch.equal(a, c) and torch.equal(b, d)


def test_add_param_group_between_steps(place):
    first, second = parameter(10, device=place), parameter(20, device=place)
    optimizer = optim.AdamW([first])
    step(optimizer, [first])
    optimizer.add_param_group({"params": [second], "lr": 1.0})
    before = second.detach().clone()
    step(optimizer, [first, second])
    assert ((second - before).abs() > 0.5).any() and float(optimizer.state[second]["step"]) == 1
    with pytest.raises(ValueError, match=r"\[AdamW\] lr: got -1, want at least 0"):
        optimizer.add_param_group({"params": [parameter(3, device=place)], "lr": -1})
    assert len(optimizer.param_groups) == 2


def test_a_parameter_may_be_replaced_in_its_group(place):
    old, new = parameter(10, device=place), parameter(12, device=place)
    optimizer = optim.AdamW([old])
    step(optimizer, [old])
    del optimizer.state[old]
    optimizer.param_groups[0]["params"][0] = new
    before = old.detach().clone()
    step(optimizer, [new])
    assert torch.equal(old, before) and float(optimizer.state[new]["step"]) == 1


def test_state_may_be_reset_or_moved(place):
    param = parameter(10, device=place)
    optimizer = optim.AdamW([param])
    step(optimizer, [param])
    state = optimizer.state[param]
    for key in state:
        state[key] = state[key].cpu().to(place)
    step(optimizer, [param])
    assert float(optimizer.state[param]["step"]) == 2
    optimizer.state.clear()
    step(optimizer, [param])
    assert float(optimizer.state[param]["step"]) == 1


def test_closure_and_hooks(place):
    param = parameter(10, device=place)
    optimizer = optim.AdamW([param])
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        calls.append("closure")
        return loss

    before = float(param.detach().square().sum())
    assert float(optimizer.step(closure).detach()) == pytest.approx(before)
    assert calls == ["pre", "closure", "post"]
    optimizer.zero_grad()
    assert param.grad is None


@pytest.mark.parametrize("tensor", [False, True])
def test_learning_rate_schedulers(tensor, place):
    rates = [torch.tensor(0.1, device=place) if tensor else 0.1, 0.1]
    params = [parameter(100, device=place) for _ in rates]
    optimizers = [optim.AdamW([p], lr=lr) for p, lr in zip(params, rates, strict=True)]
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5) for o in optimizers]
    for seed in range(6):
        for optimizer, scheduler, param in zip(optimizers, schedulers, params, strict=True):
            step(optimizer, [param], seed)
            scheduler.step()
    torch.testing.assert_close(*params, rtol=1e-6, atol=1e-6)


def test_one_cycle_turns_momentum_on(place):
    param = parameter(100, device=place)
    optimizer = optim.SGD([param], lr=0.1)
    step(optimizer, [param])
    assert set(optimizer.state[param]) == {"step"}
    optimizer.param_groups[0]["momentum"] = 0.9
    step(optimizer, [param])
    assert set(optimizer.state[param]) == {"step", "state1"}


# --- Saving ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "kahan"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)]
)
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_resumes_bit_for_bit(name, bits, dtype, kahan, place):
    shapes = [(300,), (0,), (20, 30), ()]
    params = [parameter(shape, dtype, place, seed=i) for i, shape in enumerate(shapes)]
    optimizer = make(name, params, optim_bits=bits, min_8bit_size=0, kahan_sum=kahan)
    for seed in range(3):
        step(optimizer, params, seed)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    copies = [torch.nn.Parameter(param.detach().clone()) for param in params]
    resumed = make(name, copies, lr=123.0)
    resumed.load_state_dict(torch.load(file, map_location="cpu"))
    assert_equal(snapshot(resumed, copies), snapshot(optimizer, params))
    for seed in range(3, 6):
        step(optimizer, params, seed)
        step(resumed, copies, seed)
    assert_equal(snapshot(resumed, copies), snapshot(optimizer, params))


def test_copies_and_pickles(place):
    param = parameter(5000, device=place)
    optimizer = optim.AdamW8bit([param], check_finite=True)
    step(optimizer, [param])
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        (own,) = again.param_groups[0]["params"]
        assert again.check_finite and own is not param
        assert_equal(snapshot(again, [own]), snapshot(optimizer, [param]))
        own.grad = param.grad
        again.step()
        assert float(again.state[own]["step"]) == 2


def test_load_hooks_see_tensors(place):
    param = parameter(5000, device=place)
    optimizer = optim.AdamW8bit([param])
    step(optimizer, [param])
    seen = []
    optimizer.register_load_state_dict_pre_hook(
        lambda _, saved: seen.append(saved["state"][0]["state1"].dtype)
    )
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.state[param]["state1"].dtype))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == [torch.uint8, torch.uint8]


@pytest.mark.parametrize("layout", ["wrapped", "flat", "blocks of 2048"])
def test_states_of_bitsandbytes_are_loaded(layout, place):
    param = parameter(5000, device=place)
    optimizer = optim.AdamW8bit([param])
    step(optimizer, [param])
    own = {key: value.cpu() for key, value in optimizer.state[param].items()}
    if layout == "blocks of 2048":
        own |= {key: own[key][::8].clone() for key in ("absmax1", "absmax2")}
    tensors = {**own, "qmap1": torch.zeros(256), "qmap2": torch.zeros(256)}
    steps = int(tensors.pop("step"))
    saved = (
        {"step": steps, "__bnb_optimizer_quant_state__": tensors}
        if layout == "wrapped"
        else {"step": steps, **tensors}
    )
    fresh = optim.AdamW8bit([param])
    fresh.load_state_dict({"state": {0: saved}, "param_groups": fresh.state_dict()["param_groups"]})
    state = fresh.state[param]
    assert set(state) == {"step", "state1", "state2", "absmax1", "absmax2"} and float(state["step"]) == 1
    assert torch.equal(state["state1"].cpu(), own["state1"]) and state["absmax1"].shape == (20,)
    assert state["absmax1"][7] == own["absmax1"][0 if layout == "blocks of 2048" else 7].to(place)
    step(fresh, [param])


# --- Arguments -------------------------------------------------------------------------------------------

REFUSED = {
    "amsgrad": ("AdamW", {"amsgrad": True}, r"\[AdamW\] amsgrad: got True, want False"),
    "lr": ("Lion", {"lr": -1.0}, r"\[Lion\] lr: got -1.0, want at least 0"),
    "weight_decay": ("SGD", {"weight_decay": -1.0}, "weight_decay: got -1.0"),
    "betas": ("Adam", {"betas": (0.9, 1.0)}, "betas: got"),
    "three betas": ("AdEMAMix", {"betas": (0.9, 0.99)}, r"betas: got .* want 3 numbers"),
    "t_alpha": ("AdEMAMix", {"t_alpha": 0}, "t_alpha: got 0, want None or at least 1"),
    "eps": ("AdamW", {"eps": -1.0}, "eps: got"),
    "momentum": ("RMSprop", {"momentum": 0.9}, r"\[RMSprop\] momentum: got 0.9, want 0"),
    "centered": ("RMSprop", {"centered": True}, "centered: got True, want False"),
    "nesterov": ("SGD", {"nesterov": True, "momentum": 0.0}, "nesterov: got True, want momentum"),
    "lr_decay": ("Adagrad", {"lr_decay": -0.1}, "lr_decay: got"),
    "optim_bits": ("AdamW", {"optim_bits": 4}, "optim_bits: got 4, want 8 or 32"),
    "no optim_bits": ("AdamW", {"optim_bits": 0}, "optim_bits: got 0, want 8 or 32"),
    "seed": ("AdamW", {"seed": -1}, "seed: got -1"),
    "kahan_sum": (
        "AdamW", {"kahan_sum": True, "stochastic_rounding": True},
        r"\[AdamW\] kahan_sum: got True, want False with stochastic_rounding",
    ),
    "bits of the name": ("AdamW8bit", {"optim_bits": 32}, r"\[AdamW8bit\] optim_bits: got 32, want 8"),
    "differentiable": ("AdamW", {"differentiable": True}, "differentiable: got True, want False"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_without_sense_are_refused(case):
    name, arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        getattr(optim, name)([parameter(3)], **arguments)


def test_groups_cannot_differ_in_rounding():
    groups = [{"params": [parameter(3)]}, {"params": [parameter(3)], "stochastic_rounding": True}]
    with pytest.raises(ValueError, match="stochastic_rounding: got True, want False, as in the first group"):
        optim.AdamW(groups)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match=r"\[AdamW\] arguments: got block_wise, want some of optim_bits, "):
        optim.AdamW([parameter(3)], block_wise=True)


def test_arguments_of_torch_are_taken():
    optim.AdamW(
        [parameter(3)], 1e-3, (0.9, 0.99), 1e-8, 1e-2, False, maximize=False, fused=True, capturable=True
    )


def test_every_class_is_there_in_8_and_32_bits():
    for name in optim_cases.HYPERPARAMETERS:
        for bits in (8, 32):
            optimizer = getattr(optim, f"{name}{bits}bit")([parameter(3)])
            assert optimizer.param_groups[0]["optim_bits"] == bits


def test_adagrad_starts_with_its_initial_value(place):
    for bits in (32, 8):
        param, double = parameter(5000, device=place), parameter(5000)
        optimizer = optim.Adagrad([param], initial_accumulator_value=0.5, optim_bits=bits)
        reference = torch.optim.Adagrad([double], initial_accumulator_value=0.5)
        step(optimizer, [param])
        double.grad = param.grad.cpu()
        reference.step()
        torch.testing.assert_close(param.cpu(), double)


def test_compiled_training_steps(place):
    layer = torch.nn.Linear(16, 16, device=place)
    optimizer = optim.AdamW(layer.parameters(), lr=0.1)
    x = torch.randn(4, 16, device=place)

    @torch.compile(backend="eager")
    def train():
        optimizer.zero_grad()
        loss = layer(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = [float(train().detach()) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert not [w for w in caught if "qbits" in str(w.message) or "optimizer" in str(w.message).lower()]
