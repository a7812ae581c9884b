"""What optimizers load, and that steps do not depend on torch's default dtype."""

import copy

import pytest
import torch

from optim_cases import parameter
from qbits import optim


def saved_by(optimizer, steps=2):
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones_like(param)
    for _ in range(steps):
        optimizer.step()
    return optimizer.state_dict()


def without_marker(saved):
    """As it was saved before groups named an algorithm, and as bitsandbytes saves it."""
    groups = [{k: v for k, v in group.items() if k != "state_of"} for group in saved["param_groups"]]
    return {**saved, "param_groups": groups}


def refuses(optimizer, saved, message, error=ValueError):
    """And keeps what it had."""
    before = copy.deepcopy(saved_by(optimizer))
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(saved)
    after = optimizer.state_dict()
    assert before["param_groups"][0].items() <= after["param_groups"][0].items()
    for key, value in before["state"][0].items():
        assert torch.equal(after["state"][0][key], value)
    optimizer.step()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.optim.AdamW, r"\[AdamW\] state: got exp_avg, exp_avg_sq, want what optimizers of qbits"),
        (optim.Adagrad, r"\[AdamW\] state: got state1, want state1 and state2"),
        (optim.AdEMAMix, r"\[AdamW\] state1: got 12800 numbers, want 6400 for \[80, 80\]"),
    ],
)
def test_the_state_of_another_algorithm_is_refused(source, message):
    saved = without_marker(saved_by(source([parameter((80, 80))])))
    refuses(optim.AdamW([parameter((80, 80))]), saved, message)


def momentum(params, **options):
    return optim.SGD(params, momentum=0.9, **options)


ALIKE = {
    "adagrad": optim.Adagrad,
    "lion": optim.Lion,
    "rmsprop": optim.RMSprop,
    "momentum": momentum,
    "lars": optim.LARS,
    "muon": optim.Muon,
}


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("source", ALIKE)
@pytest.mark.parametrize("target", ALIKE)
def test_states_alike_in_shape_are_told_apart(target, source, bits):
    saved = saved_by(ALIKE[source]([parameter((80, 80))], optim_bits=bits))
    optimizer = ALIKE[target]([parameter((80, 80))])
    if source != target:
        refuses(optimizer, saved, rf"\] state: got that of {source}, want that of {target}")
        saved["param_groups"] = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(saved if source == target else without_marker(saved))
    (own,) = optimizer.state.values()
    assert torch.equal(own["state1"], saved["state"][0]["state1"])
    saved_by(optimizer)


def test_states_with_one_meaning_are_loaded():
    saved = saved_by(optim.AdamW8bit([parameter((80, 80))]))
    for target in (optim.Adam, optim.LAMB, optim.AdamW32bit, optim.PagedAdamW):
        optimizer = target([parameter((80, 80))])
        optimizer.load_state_dict(saved)
        saved_by(optimizer)
    assert optimizer.param_groups[0]["state_of"] == "adam"
    with pytest.raises(ValueError, match=r"\[AdamW\] state_of: got lion, want adam"):
        optim.AdamW([{"params": [parameter(3)], "state_of": "lion"}])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("flat", [False, True])
def test_checkpoints_of_torch_name_the_algorithm(flat, tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import state_dict as of

    options = of.StateDictOptions(flatten_optimizer_state_dict=flat)
    layers = [torch.nn.Linear(80, 80) for _ in range(3)]
    # SGD has the state and all hyperparameters of LARS, so that torch finds nothing amiss.
    classes = (optim.LARS, optim.LARS, momentum)
    optimizers = [cls(layer.parameters()) for cls, layer in zip(classes, layers, strict=True)]
    saved_by(optimizers[0])
    saved = of.get_optimizer_state_dict(layers[0], optimizers[0], options=options)
    dcp.save({"optim": saved}, checkpoint_id=tmp_path)

    def load(layer, optimizer):
        found = of.get_optimizer_state_dict(layer, optimizer, options=options)
        dcp.load({"optim": found}, checkpoint_id=tmp_path)
        of.set_optimizer_state_dict(layer, optimizer, found, options=options)

    load(layers[1], optimizers[1])
    states = [optimizers[i].state[layers[i].weight]["state1"] for i in (0, 1)]
    assert torch.equal(*states)
    with pytest.raises(ValueError, match=r"\[SGD\] state: got that of lars, want that of momentum"):
        load(layers[2], optimizers[2])


@pytest.mark.parametrize("size", [5000, 300, 100])
def test_scales_have_as_many_blocks_as_there_are(size):
    param = parameter(size)
    optimizer = optim.AdamW8bit([param], min_8bit_size=0)
    saved = copy.deepcopy(saved_by(optimizer))
    blocks, old = -(-size // 256), -(-size // 2048)
    for count in range(1, blocks + 3):
        saved["state"][0]["absmax1"] = torch.rand(count)
        fresh = optim.AdamW8bit([param], min_8bit_size=0)
        if count in (blocks, old):
            fresh.load_state_dict(saved)
            assert fresh.state[param]["absmax1"].shape == (blocks,)
        else:
            message = rf"absmax1: got shape \[{count}\], want \[{blocks}\] for blocks of 256, or \[{old}\]"
            with pytest.raises(ValueError, match=message):
                fresh.load_state_dict(saved)
    del saved["state"][0]["absmax1"]
    refuses(optimizer, saved, r"\[AdamW8bit\] absmax1: got none, want")


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("step", None, TypeError, "step: got None, want a number"),
        ("step", [1], TypeError, r"step: got \[1\], want a number"),
        ("step", "3", TypeError, "step: got '3', want a number"),
        ("step", torch.ones(2), TypeError, r"step: got a tensor of shape \[2\], want a number"),
        ("step", -1, ValueError, "step: got -1.0, want a finite number of at least 0"),
        ("step", torch.tensor(float("nan")), ValueError, "step: got nan"),
        ("state1", [1.0], TypeError, "state1: got list, want a tensor"),
        ("gnorm_vec", torch.zeros(7), ValueError, "gnorm_vec: got 7 numbers, want 100"),
        (
            "gnorm_vec",
            torch.zeros(100).double(),
            TypeError,
            "gnorm_vec: got torch.float64, want torch.float32",
        ),
        ("state1", torch.zeros(80, 80).half(), TypeError, "state1: got torch.float16, want torch.float32"),
        ("state2", torch.zeros(80, 80).long(), TypeError, "state2: got torch.int64, want torch.float32"),
        (None, [1.0], TypeError, "state: got list, want a dict"),
    ],
)
def test_values_that_no_state_has_are_refused(key, value, error, message):
    optimizer = optim.AdamW([parameter((80, 80))])
    saved = copy.deepcopy(saved_by(optimizer))
    if key is None:
        saved["state"][0] = value
    else:
        saved["state"][0][key] = value
    refuses(optimizer, saved, rf"\[AdamW\] {message}", error)


def test_state_with_gaps_is_loaded():
    param, other = parameter((80, 80)), parameter((80, 80))
    optimizer, fresh = optim.AdamW([param]), optim.AdamW([other])
    saved = copy.deepcopy(saved_by(optimizer))
    other.data.copy_(param.data)
    for key in ("state1", "state2"):
        saved["state"][0][key] = saved["state"][0][key].t().contiguous().t()
    fresh.load_state_dict(saved)
    param.grad = other.grad = torch.ones_like(param)
    optimizer.step()
    fresh.step()
    assert torch.equal(param, other)


@pytest.mark.parametrize("steps", [3, 3.0, torch.tensor(3), torch.tensor([3.0], dtype=torch.float64)])
def test_steps_may_be_any_number(steps):
    param = parameter(300)
    optimizer = optim.AdamW([param])
    saved = copy.deepcopy(saved_by(optimizer))
    saved["state"][0]["step"] = steps
    optimizer.load_state_dict(saved)
    saved_by(optimizer, 1)
    assert float(optimizer.state[param]["step"]) == 4


def test_skipped_elements_are_counted_on():
    param = parameter(300)
    optimizer = optim.AdamW([param], check_finite=True)
    saved = copy.deepcopy(saved_by(optimizer))

    def skip():
        param.grad = torch.full_like(param, float("inf"))
        with pytest.raises(FloatingPointError, match="got 300 elements"):
            optimizer.step()

    skip()
    counters = optimizer.skipped_counters
    optimizer.load_state_dict(saved)
    assert optimizer.skipped() == 300
    skip()
    assert optimizer.skipped() == 600 and int(counters[param.device]) == 600
    again = copy.deepcopy(optimizer)
    assert again.skipped() == 0
    saved_by(again, 1)


def test_state_of_another_shape_is_refused():
    saved = saved_by(optim.AdamW8bit([parameter((80, 80))]))
    optimizer = optim.AdamW8bit([parameter((80, 60))])
    with pytest.raises(ValueError, match=r"state1: got 6400 numbers, want 4800"):
        optimizer.load_state_dict(saved)


def test_compensations_are_loaded_where_they_fit():
    def kahan(shape, dtype, kahan_sum=True):
        return optim.AdamW([parameter(shape, dtype)], kahan_sum=kahan_sum)

    saved = saved_by(kahan((80, 80), torch.bfloat16))
    with pytest.raises(ValueError, match=r"\[AdamW\] kahan_comp: got 6400 numbers, want 4800"):
        small = copy.deepcopy(saved)
        del small["state"][0]["state1"], small["state"][0]["state2"]
        kahan((80, 60), torch.bfloat16).load_state_dict(small)
    for dtype in (torch.float32, torch.float16):  # theirs is another: it starts anew
        optimizer = kahan((80, 80), dtype)
        optimizer.load_state_dict(saved)
        (state,) = optimizer.state.values()
        assert ("kahan_comp" in state) == (dtype == torch.float16)
        if dtype == torch.float16:
            assert state["kahan_comp"].dtype == dtype and not state["kahan_comp"].any()
    plain = saved_by(kahan((80, 80), torch.bfloat16, kahan_sum=False))
    del plain["param_groups"][0]["kahan_sum"]  # as saved before there was such a thing
    optimizer = kahan((80, 80), torch.bfloat16)
    optimizer.load_state_dict(plain)
    assert "kahan_comp" in next(iter(optimizer.state.values()))
    plain["param_groups"][0]["kahan_sum"] = False
    optimizer.load_state_dict(plain)
    assert "kahan_comp" not in next(iter(optimizer.state.values()))  # as the group that was loaded says
    assert "kahan_comp" not in optim.to_bitsandbytes(saved, wrapped=False)["state"][0]


def test_steps_do_not_depend_on_the_default_dtype():
    torch.set_default_dtype(torch.bfloat16)
    try:
        params = [torch.nn.Parameter(torch.ones(80, 83, dtype=torch.float32)) for _ in range(3)]
        optimizers = [optim.Muon8bit(params[:1]), optim.AdamW(params[1:2], percentile_clipping=50)]
        optimizers.append(optim.AdamW8bit(params[2:]))
        for optimizer in optimizers:
            saved_by(optimizer)
        optim.rows_of_state(optimizers[2].state_dict())
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(param.isfinite().all() and (param != 1).any() for param in params)
