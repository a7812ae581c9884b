"""Paged optimizers: the same bits, wherever the state is. On the CPU the pager works on plain memory."""

import copy
import functools
import gc
import io
import pickle
import weakref

import pytest
import torch

from optim_cases import HYPERPARAMETERS, gradients, make, parameter
from qbits import optim
from qbits.optim import paging

SHAPES = [(300,), (130, 1000), (), (5000,), (0, 3), (70_001,), (64, 64)]
PAGED = [
    f"Paged{name}{bits}" for name in ("Adam", "AdamW", "Lion", "AdEMAMix") for bits in ("", "8bit", "32bit")
]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request, monkeypatch):
    """A device whose state is paged, through buffers so small that there are many windows."""
    device = torch.device(request.param)
    monkeypatch.setattr(paging, "DEVICES", (device.type,))
    monkeypatch.setattr(paging.Pages, "OPTIONS", {"host_slab_bytes": 1 << 20, "staging_bytes": 100_000})
    return torch.device("cuda", 0) if device.type == "cuda" else device


def parameters(place, dtype=torch.float32):
    return [parameter(shape, dtype, place, seed=i) for i, shape in enumerate(SHAPES)]


def step(optimizer, params, seed=0):
    for i, param in enumerate(params):
        param.grad = gradient(param.shape, param.dtype, seed + 7 * i).to(param.device)
    return optimizer.step()


@functools.cache
def gradient(shape, dtype, seed):
    return next(gradients(shape, 1, dtype, seed=seed))


def settle():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def snapshot(optimizer, params):
    settle()
    tensors = [param.detach().clone() for param in params]
    for param in params:
        tensors += [value.clone() for _, value in sorted(optimizer.state[param].items())]
    return tensors


def assert_equal(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.cpu(), b.cpu())


def state_bytes(optimizer):
    return sum(pages.pager.resident_bytes() for pages in optimizer._pages.values())


def is_resident(optimizer, param):
    pages = optimizer._pages[param.device]
    return pages.pager.is_resident(pages._places[param][0])


@pytest.mark.parametrize("budget", [0, 400_000, 1 << 40])
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", [*HYPERPARAMETERS, "LAMB", "LARS"])
def test_the_same_bits_as_without_paging(name, bits, budget, place):
    params, others = parameters(place), parameters(place)
    known = {"optim_bits": bits, "min_8bit_size": 1000}
    if name in HYPERPARAMETERS:
        known |= HYPERPARAMETERS[name]
    plain = getattr(optim, name)(params, **known)
    paged = getattr(optim, name)(others, **known, is_paged=True, device_budget=budget)
    for seed in range(4):
        step(plain, params, seed)
        if seed == 2:
            paged.prefetch()
        step(paged, others, seed)
    assert_equal(snapshot(paged, others), snapshot(plain, params))
    resident = state_bytes(paged)
    assert resident <= budget and (resident > 0) == (budget > 0)


@pytest.mark.parametrize("name", PAGED)
def test_every_paged_class(name, place):
    params, others = parameters(place), parameters(place)
    plain = getattr(optim, name.removeprefix("Paged"))(params)
    paged = getattr(optim, name)(others, device_budget=100_000)
    assert paged.is_paged and not plain.is_paged
    for seed in range(2):
        step(plain, params, seed)
        step(paged, others, seed)
    assert_equal(snapshot(paged, others), snapshot(plain, params))
    with pytest.raises(ValueError, match=rf"\[{name}\] is_paged: got False, want True"):
        getattr(optim, name)(others, is_paged=False)


@pytest.mark.parametrize("rounding", ["stochastic_rounding", "kahan_sum"])
def test_rounding(rounding, place):
    params, others = parameters(place, torch.bfloat16), parameters(place, torch.bfloat16)
    plain = optim.AdamW8bit(params, **{rounding: True}, seed=3)
    paged = optim.PagedAdamW8bit(others, **{rounding: True}, seed=3, device_budget=0)
    for seed in range(3):
        step(plain, params, seed)
        step(paged, others, seed)
    assert_equal(snapshot(paged, others), snapshot(plain, params))


def test_state_lies_where_the_budget_says(place):
    params = parameters(place)
    optimizer = optim.PagedAdamW8bit(params, device_budget=100_000)
    step(optimizer, params)
    assert [is_resident(optimizer, p) for p in params if p.numel()] == [True, False, True, True, False, True]
    pages = optimizer._pages[place]
    assert pages.pager.staging_bytes() <= 300_000
    assert "resident in" in optimizer.paging_plans[place] and "windows through 3 buffers" in pages.plan
    for param in params:
        own = optimizer.state[param]
        assert own["step"].device == param.device
        where = place if param.numel() == 0 or is_resident(optimizer, param) else torch.device("cpu")
        assert {own[key].device for key in own if key != "step"} == {where}


def test_parameters_without_gradients_and_late_ones(place):
    params, others = parameters(place), parameters(place)
    plain, paged = optim.AdamW8bit(params[:3]), optim.PagedAdamW8bit(others[:3], device_budget=0)
    for optimizer, own in ((plain, params), (paged, others)):
        step(optimizer, own[:2], 0)
        own[1].grad = None
        step(optimizer, own[2:3], 1)
        optimizer.add_param_group({"params": own[3:], "lr": 0.1})
        step(optimizer, own, 2)
        own[5].grad = None
        optimizer.step()
    assert_equal(snapshot(paged, others), snapshot(plain, params))


def test_a_refused_step_changes_nothing(place):
    params = parameters(place)
    optimizer = optim.PagedAdamW8bit(params, device_budget=0)
    step(optimizer, params)
    before = snapshot(optimizer, params)
    steps = optimizer.state[params[6]]["step"]
    optimizer.state[params[6]]["step"] = torch.zeros(2, device=place)
    with pytest.raises(ValueError, match=r"step: got float32\[2\]"):
        optimizer.step()
    optimizer.state[params[6]]["step"] = steps
    assert_equal(snapshot(optimizer, params), before)


def test_adagrad_starts_with_its_initial_value(place):
    params, others = parameters(place), parameters(place)
    plain = optim.Adagrad8bit(params, initial_accumulator_value=0.5)
    paged = optim.Adagrad8bit(others, initial_accumulator_value=0.5, is_paged=True, device_budget=0)
    step(plain, params)
    step(paged, others)
    assert_equal(snapshot(paged, others), snapshot(plain, params))


def test_momentum_that_is_turned_on(place):
    params, others = parameters(place), parameters(place)
    plain, paged = optim.SGD(params), optim.SGD(others, is_paged=True, device_budget=0)
    for optimizer, own in ((plain, params), (paged, others)):
        step(optimizer, own)
        optimizer.param_groups[0]["momentum"] = 0.9
        step(optimizer, own, 1)
    assert_equal(snapshot(paged, others), snapshot(plain, params))


def test_state_may_be_replaced(place):
    param, other = parameter(5000, device=place), parameter(5000, device=place)
    plain, paged = optim.AdamW([param]), optim.PagedAdamW([other], device_budget=1 << 30)
    for optimizer, own in ((plain, param), (paged, other)):
        step(optimizer, [own])
        state = optimizer.state[own]
        for key in state:
            state[key] = state[key].clone()
        step(optimizer, [own], 1)
    paged.page_out()
    assert_equal(snapshot(paged, [other]), snapshot(plain, [param]))
    paged.state.clear()
    step(paged, [other], 2)
    assert float(paged.state[other]["step"]) == 1


def test_a_single_array_of_paged_state_may_not_be_replaced(place):
    param = parameter(5000, device=place)
    optimizer = optim.PagedAdamW8bit([param], device_budget=0, min_8bit_size=0)
    step(optimizer, [param])
    state, before = optimizer.state[param], param.detach().clone()
    kept = state["absmax2"]
    state["absmax2"] = kept.clone()
    with pytest.raises(ValueError, match="arrays of several places for tensor 0, want all that state"):
        step(optimizer, [param])
    assert torch.equal(param, before)
    state["absmax2"] = kept
    step(optimizer, [param])


@pytest.mark.parametrize("budget", [0, 1 << 40])
def test_state_that_is_thrown_away_leaves_its_place(budget, place):
    params, others = parameters(place), parameters(place)
    plain, paged = optim.AdamW8bit(params), optim.PagedAdamW8bit(others, device_budget=budget)
    for seed in range(4):
        step(plain, params, seed)
        step(paged, others, seed)
        used = paged._pages[place].pager.host_bytes(), state_bytes(paged)
        paged.prefetch()
        settle()
        plain.state.clear()
        paged.state.clear()
    step(plain, params, 4)
    step(paged, others, 4)
    assert_equal(snapshot(paged, others), snapshot(plain, params))
    assert used == (paged._pages[place].pager.host_bytes(), state_bytes(paged))


# --- Saving ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 400_000, 1 << 40])
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", ["AdamW", "AdEMAMix", "Lion", "SGD"])
def test_a_run_resumes_bit_for_bit(name, bits, budget, place):
    params = parameters(place)
    optimizer = make(name, params, optim_bits=bits, is_paged=True, device_budget=budget)
    for seed in range(3):
        step(optimizer, params, seed)
    saved = optimizer.state_dict()
    tensors = [v for own in saved["state"].values() for v in own.values() if isinstance(v, torch.Tensor)]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    file = io.BytesIO()
    torch.save(saved, file)
    kept = [tensor.clone() for tensor in tensors]
    copies = [torch.nn.Parameter(param.detach().clone()) for param in params]
    resumed = make(name, copies, lr=123.0, is_paged=True, device_budget=budget)
    file.seek(0)
    resumed.load_state_dict(torch.load(file))
    assert resumed.is_paged
    for seed in range(3, 6):
        step(optimizer, params, seed)
        step(resumed, copies, seed)
    assert_equal(snapshot(resumed, copies), snapshot(optimizer, params))
    assert state_bytes(resumed) == state_bytes(optimizer) <= budget
    assert_equal(tensors, kept)  # later steps leave what was saved alone


def test_paged_and_other_states_load_into_each_other(place):
    params, others = parameters(place), parameters(place)
    plain, paged = optim.AdamW8bit(params), optim.PagedAdamW8bit(others, device_budget=0)
    step(plain, params)
    step(paged, others)
    plain_saved, paged_saved = plain.state_dict(), paged.state_dict()
    plain.load_state_dict(paged_saved)
    paged.load_state_dict(plain_saved)
    assert {v.device for v in plain.state[params[1]].values()} == {place}
    for seed in (1, 2):
        step(plain, params, seed)
        step(paged, others, seed)
    assert_equal(snapshot(paged, others), snapshot(plain, params))
    assert state_bytes(paged) == 0 and not is_resident(paged, others[1])


def test_hooks_and_a_state_that_does_not_fit(place):
    params = parameters(place)
    optimizer = optim.PagedAdamW8bit(params, device_budget=0)
    step(optimizer, params)
    seen = []
    optimizer.register_state_dict_post_hook(
        lambda _, saved: seen.append(saved["state"][1]["state1"].device.type)
    )
    saved = optimizer.state_dict()
    assert seen == ["cpu"] and optimizer.state[params[1]]["state1"] is not saved["state"][1]["state1"]
    saved["state"][1]["state1"] = saved["state"][1]["state1"][:5]
    with pytest.raises(ValueError, match=r"state1: got 5000 numbers, want 130000 for \[130, 1000\]"):
        optimizer.load_state_dict(saved)
    step(optimizer, params)  # with what it had


def test_copies_and_pickles(place):
    params = parameters(place)
    optimizer = optim.PagedAdamW8bit(params, device_budget=0)
    step(optimizer, params)
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        own = again.param_groups[0]["params"]
        assert again.is_paged and again.device_budget == 0
        assert_equal(snapshot(again, own), snapshot(optimizer, params))
        for mine, theirs in zip(own, params, strict=True):
            mine.grad = theirs.grad
        again.step()
        assert float(again.state[own[1]]["step"]) == 2 and not is_resident(again, own[1])


# --- Memory ----------------------------------------------------------------------------------------------


def test_paging_out_and_in(place):
    params, others = parameters(place), parameters(place)
    plain, paged = optim.AdamW8bit(params), optim.PagedAdamW8bit(others, device_budget=1 << 40)
    for seed in range(3):
        step(plain, params, seed)
        step(paged, others, seed)
        resident = state_bytes(paged)
        assert resident > 0 and paged.page_out() == resident
        pager = paged._pages[place].pager
        assert state_bytes(paged) == pager.staging_bytes() == 0 and pager.host_bytes() > 0
        assert paged.state[others[1]]["state1"].device.type == "cpu"
        assert_equal(snapshot(paged, others), snapshot(plain, params))
    assert paged.page_out() == 0


@pytest.mark.parametrize("budget", [None, 0])
def test_a_backward_pass_starts_to_prefetch(budget, place):
    """But with a budget in bytes, where a step may be captured, nothing must be on its way."""
    params, others = parameters(place), parameters(place)
    plain = optim.AdamW8bit(params)
    paged = optim.PagedAdamW8bit(others, device_reserve=1 << 60, device_budget=budget)
    for turn in range(3):
        for optimizer, own in ((plain, params), (paged, others)):
            optimizer.zero_grad()
            for _ in range(2):
                sum((p * p).sum() for p in own).backward()
            if optimizer is paged and turn > 0:
                assert paged._pages[place]._prefetched is (False if budget is None else None)
            optimizer.step()
    assert_equal(snapshot(paged, others), snapshot(plain, params))
    del paged, optimizer
    gc.collect()
    assert not others[-1]._post_accumulate_grad_hooks


def test_parameters_that_are_watched_may_be_swapped(place):
    """As conversions of modules do where torch is told so; weak references would forbid it."""
    layer = torch.nn.Linear(40, 50, device=place)
    optimizer = optim.PagedAdamW8bit(layer.parameters(), device_reserve=1 << 60, min_8bit_size=0)
    for _ in range(2):
        layer(torch.ones(3, 40, device=place)).sum().backward()
        optimizer.step()
        optimizer.page_out()
    assert len(layer.bias._post_accumulate_grad_hooks) == 1
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.bfloat16()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert layer.bias.dtype == torch.bfloat16


def test_prefetched_state_may_be_paged_out(place):
    params, others = parameters(place), parameters(place)
    plain, paged = optim.AdamW8bit(params), optim.PagedAdamW8bit(others, device_budget=0)
    paged.prefetch()
    for seed in range(3):
        step(plain, params, seed)
        paged.prefetch()
        paged.prefetch()
        if seed == 1:
            paged.page_out()
        step(paged, others, seed)
    assert_equal(snapshot(paged, others), snapshot(plain, params))


def test_everything_is_freed_with_the_optimizer(place):
    params = parameters(place)
    optimizer = optim.PagedAdamW8bit(params, device_budget=100_000)
    step(optimizer, params)
    optimizer.prefetch()
    memory = optimizer._pages[place].memory
    blocks = [weakref.ref(block) for block in memory._blocks.values()]
    assert len(blocks) > 3
    del optimizer
    gc.collect()
    assert not memory._blocks and not memory._locked
    assert all(block() is None for block in blocks)


def test_a_step_that_runs_out_of_memory_is_repeated(place):
    params, others = parameters(place), parameters(place)
    plain, paged = optim.AdamW8bit(params), optim.PagedAdamW8bit(others, device_budget=1 << 40)
    step(plain, params, 0)
    step(paged, others, 0)
    everything = state_bytes(paged)

    def train():
        if state_bytes(paged) > everything // 2:
            raise torch.OutOfMemoryError("simulated")
        step(paged, others, 1)
        return "done"

    assert paged.retry(train) == "done"
    step(plain, params, 1)
    assert_equal(snapshot(paged, others), snapshot(plain, params))
    assert 0 < state_bytes(paged) <= everything // 2
    assert paged.retry(train) == "done"  # and not paged out again


def test_running_out_of_memory_without_help(place):
    params = parameters(place)
    optimizer = optim.PagedAdamW8bit(params, device_budget=0)
    step(optimizer, params)
    calls = []

    def train():
        calls.append(1)
        raise torch.OutOfMemoryError("simulated")

    with pytest.raises(torch.OutOfMemoryError):
        optimizer.retry(train)
    assert len(calls) == 1


def test_where_resident_memory_lacks_state_stays_on_the_host(place, monkeypatch):
    params, others = parameters(place), parameters(place)
    plain, paged = optim.AdamW8bit(params), optim.PagedAdamW8bit(others, device_budget=1 << 40)
    allocate = paging.Memory.allocate
    monkeypatch.setattr(
        paging.Memory,
        "allocate",
        lambda self, kind, size: (
            None if kind == "resident" and size > 100_000 else allocate(self, kind, size)
        ),
    )
    step(plain, params)
    step(paged, others)
    assert 0 < state_bytes(paged) < 100_000
    assert_equal(snapshot(paged, others), snapshot(plain, params))


def test_failing_memory_is_reported(place, monkeypatch):
    params = parameters(place)
    optimizer = optim.PagedAdamW8bit(params, device_budget=0)
    allocate = paging.Memory.allocate

    def no_staging(self, kind, size):
        if kind == "staging":
            raise torch.OutOfMemoryError("simulated")
        return allocate(self, kind, size)

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError, match="simulated"):
        patch.setattr(paging.Memory, "allocate", no_staging)
        step(optimizer, params)
    others = parameters(place)
    plain = optim.AdamW8bit(others)
    step(plain, others)
    step(optimizer, params)
    assert_equal(snapshot(optimizer, params), snapshot(plain, others))


@pytest.mark.parametrize("key", ["device_budget", "device_reserve"])
@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (1 << 63, ValueError), (1.5, ValueError), ("1", TypeError)]
)
def test_sizes_without_sense_are_refused(key, value, error):
    with pytest.raises(error, match=rf"\[PagedLion\] {key}: got .*{value}.*, want a whole number from 0"):
        optim.PagedLion([parameter(3)], **{key: value})
    assert getattr(optim.PagedLion([parameter(3)], **{key: 1e9}), key) == 10**9


def test_on_the_cpu_there_is_nothing_to_page():
    params, others = parameters("cpu"), parameters("cpu")
    plain, paged = optim.AdamW8bit(params), optim.PagedAdamW8bit(others)
    for seed in range(3):
        step(plain, params, seed)
        paged.prefetch()
        step(paged, others, seed)
    assert paged.page_out() == 0 and paged.paging_plans == {}
    assert_equal(snapshot(paged, others), snapshot(plain, params))
    paged.load_state_dict(plain.state_dict())
    step(paged, others)
