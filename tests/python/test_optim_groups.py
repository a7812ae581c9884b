"""Hyperparameters of groups and of single parameters are checked, whenever and however they come."""

import copy
import io
import math
import pickle
import typing

import numpy as np
import pytest
import torch
import typing_extensions

from optim_cases import parameter
from qbits import optim


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    return torch.device(request.param)


def step(optimizer, grad=1.0):
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.full_like(param, grad)
    optimizer.step()


# Of each: the class, a hyperparameter, a value without sense, and what is said.
WITHOUT_SENSE = [
    ("AdamW", "lr", "a", TypeError, "got 'a', want at least 0 and finite"),
    ("AdamW", "lr", None, TypeError, "got None"),
    ("AdamW", "lr", [0.1], TypeError, r"got \[0.1\]"),
    ("AdamW", "lr", math.nan, ValueError, "got nan"),
    ("AdamW", "lr", math.inf, ValueError, "got inf"),
    ("AdamW", "lr", torch.ones(3), TypeError, r"got a tensor of shape \[3\]"),
    ("AdamW", "lr", torch.tensor(math.nan), ValueError, "nan"),
    ("Lion", "weight_decay", math.inf, ValueError, "got inf"),
    ("AdamW", "betas", 0.9, TypeError, "got 0.9, want 2 numbers"),
    ("AdamW", "betas", ("a", "b"), TypeError, "want 2 numbers"),
    ("AdamW", "betas", (0.9, math.nan), ValueError, "want 2 numbers"),
    ("AdamW", "eps", math.nan, ValueError, "got nan"),
    ("AdamW", "amsgrad", True, ValueError, "got True, want False"),
    ("AdamW", "maximize", "yes", ValueError, "got yes, want True or False"),
    ("AdamW", "percentile_clipping", 5.0, ValueError, "got 5.0, want 1 to 100, a whole number"),
    ("AdamW", "percentile_clipping", "5", TypeError, "got '5', want 1 to 100"),
    ("AdamW", "optim_bits", 16, ValueError, "got 16, want 8 or 32"),
    ("AdamW", "min_8bit_size", None, TypeError, "got None"),
    ("AdamW", "seed", 1.5, ValueError, "got 1.5"),
    ("AdamW8bit", "optim_bits", 32, ValueError, "got 32, want 8"),
    ("SGD", "momentum", math.nan, ValueError, "got nan"),
    ("SGD", "dampening", "a", TypeError, "got 'a', want a finite number"),
    ("SGD", "nesterov", "no", ValueError, "got no"),
    ("RMSprop", "alpha", "a", TypeError, "got 'a'"),
    ("Adagrad", "lr_decay", math.inf, ValueError, "got inf"),
    ("AdEMAMix", "t_alpha", math.nan, ValueError, "got nan, want None or at least 1"),
    ("LARS", "trust_coefficient", math.inf, ValueError, "got inf"),
    ("Muon", "ns_steps", 2.5, ValueError, "got 2.5, want 1 to 99"),
    ("Muon", "ns_coefficients", (1.0, 2.0, "a"), TypeError, "want 3 numbers"),
]


@pytest.mark.parametrize("when", ["group", "changed", "replayed", "loaded", "override", "late override"])
@pytest.mark.parametrize(("name", "key", "value", "error", "message"), WITHOUT_SENSE)
def test_what_makes_no_sense_is_refused(name, key, value, error, message, when):
    params = [parameter((4, 5)) for _ in range(2)]
    match = rf"\[{name}\] {key}: .*{message}"
    cls = getattr(optim, name)
    if when == "group":
        with pytest.raises(error, match=match):
            cls([{"params": params, key: value}])
        return
    optimizer = cls(params)
    if when.endswith("override"):
        if name == "AdamW8bit":
            value, match = 16, r"\[AdamW8bit\] optim_bits: got 16, want 8 or 32"
        if when == "late override":
            optim.override(params[0], lr=0.1)
            step(optimizer)
        optim.override(params[0], **{key: value})
    elif when == "loaded":
        step(optimizer)
        saved = copy.deepcopy(optimizer.state_dict())
        saved["param_groups"][0][key] = value
        if name == "AdamW8bit":
            optimizer.load_state_dict(saved)  # the class decides, whatever the state is
            assert optimizer.param_groups[0]["optim_bits"] == 8
            return
        with pytest.raises(error, match=match):
            optimizer.load_state_dict(saved)
        step(optimizer)
        return
    else:
        step(optimizer)
        optimizer.param_groups[0][key] = value
    before = params[1].detach().clone()
    for _ in range(2):  # not the first time alone
        with pytest.raises(error, match=match):
            optimizer.write_groups() if when == "replayed" else step(optimizer)
    assert torch.equal(params[1], before)
    if when.endswith("override"):
        optim.override(params)
        step(optimizer)


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": np.float32(0.1), "betas": [np.float64(0.5), 0.9], "seed": np.int64(3)},
        {"lr": torch.tensor(0.1), "betas": (torch.tensor(0.9), 0.9), "percentile_clipping": np.int32(50)},
        {"lr": 1, "weight_decay": 0, "maximize": 1},
    ],
)
def test_numbers_of_other_kinds_are_taken(changes):
    param = parameter(30)
    optimizer = optim.AdamW([param], **changes)
    for _ in range(2):
        step(optimizer)
    optimizer.param_groups[0]["betas"] = (0.5, torch.tensor(0.5))
    step(optimizer)
    assert param.isfinite().all()


def test_a_list_that_is_changed_in_place_is_seen():
    optimizer = optim.AdamW([parameter(30)], betas=[0.9, 0.99])
    step(optimizer)
    optimizer.param_groups[0]["betas"][0] = 2.0
    with pytest.raises(ValueError, match=r"\[AdamW\] betas: got \[2.0, 0.99\]"):
        step(optimizer)


def test_the_clipping_norm_is_checked_when_it_changes():
    with pytest.raises(TypeError, match=r"\[AdamW\] max_grad_norm: got 'a', want None or above 0"):
        optim.AdamW([parameter(3)], max_grad_norm="a")
    optimizer = optim.AdamW([parameter(3)])
    optimizer.max_grad_norm = -1.0
    with pytest.raises(ValueError, match=r"\[AdamW\] max_grad_norm: got -1.0"):
        step(optimizer)


@pytest.mark.parametrize(
    "key", ["max_grad_norm", "check_finite", "is_paged", "device_budget", "device_reserve"]
)
def test_options_of_the_optimizer_are_not_for_groups(key):
    message = rf"\[AdamW\] param_group: got {key}, want that as an argument of the optimizer"
    with pytest.raises(ValueError, match=message):
        optim.AdamW([{"params": [parameter(3)], key: 1}])
    optimizer = optim.AdamW([parameter(3)])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [parameter(3)], key: None})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match=r"\[AdamW\] differentiable: got True, want False"):
        optimizer.add_param_group({"params": [parameter(3)], "differentiable": True})


@pytest.mark.parametrize("how", ["late", "loaded"])
def test_options_of_the_optimizer_are_not_for_groups_later(how):
    param = parameter(3)
    optimizer = optim.AdamW([param])
    param.grad = torch.ones_like(param)
    optimizer.step()
    before = param.detach().clone()
    saved = optimizer.state_dict()
    with pytest.raises(
        ValueError, match=r"\[AdamW\] param_group: got max_grad_norm, want that as an argument"
    ):
        if how == "late":
            optimizer.param_groups[0]["max_grad_norm"] = 1.0
            optimizer.step()
        else:
            saved["param_groups"][0]["max_grad_norm"] = 1.0
            optimizer.load_state_dict(saved)
    assert torch.equal(param, before)


def test_keys_of_users_and_of_torch_are_kept():
    keys = {"name": "head", "lr_scale": 0.5, "foreach": None, "capturable": True, "differentiable": False}
    optimizer = optim.AdamW([{"params": [parameter(3)], **keys}])
    step(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": [parameter(3)], "name": "body"})
    step(optimizer)
    assert optimizer.param_groups[0].items() >= keys.items()


@pytest.mark.parametrize("how", ["no state", "beside another"])
def test_momentum_that_is_switched_on_starts_undamped(how, place):
    ours, theirs = (parameter(100, device=place) for _ in range(2))
    groups = [{"params": [parameter(5, device=place)], "momentum": 0.5}] if how == "beside another" else []
    options = {"lr": 0.1, "dampening": 0.5, "weight_decay": 0.1}
    optimizer = optim.SGD([{"params": [ours]}, *groups], **options)
    reference = torch.optim.SGD([theirs], **options)
    last = theirs.detach().clone()
    for t in range(6):
        if t == 3:
            for either in (optimizer, reference):
                either.param_groups[0]["momentum"] = 0.9
            if how == "beside another":  # as documented: from the last gradient
                reference.state[theirs]["momentum_buffer"] = (theirs.grad + 0.1 * last).clone()
        last = theirs.detach().clone()
        step(optimizer, t + 1.0)
        theirs.grad = ours.grad.clone()
        reference.step()
        torch.testing.assert_close(ours, theirs)
    assert float(optimizer.state[ours]["step"]) == (3 if how == "no state" else 6)


# --- Single parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["beta", "max_grad_norm", "is_paged", "params"])
def test_unknown_names_of_single_parameters_are_refused(name):
    params = [parameter(3), parameter(4)]
    manager = optim.GlobalOptimManager.get_instance()
    manager.override_config(params[1], name, 1)
    optimizer = optim.AdamW(params)
    for _ in range(2):
        with pytest.raises(TypeError, match=rf"\[AdamW\] override: got {name}, want some of lr, betas, eps"):
            step(optimizer)
    assert not optimizer.state
    optim.override(params[1])
    step(optimizer)
    for wrong, kind in ("weight", "str"), (torch.nn.Linear(2, 2), "Linear"):
        with pytest.raises(TypeError, match=rf"\[override\] params: got {kind}, want tensors"):
            optim.override(wrong, lr=0.1)


def test_a_parameter_may_have_momentum_alone(place):
    params = [parameter(300, device=place) for _ in range(4)]
    optim.override(params[0], momentum=0.9)
    together = optim.SGD(params[:2], lr=0.1)
    apart = [optim.SGD([params[2]], lr=0.1, momentum=0.9), optim.SGD([params[3]], lr=0.1)]
    for t in range(3):
        for optimizer in (together, *apart):
            step(optimizer, t + 1.0)
    assert torch.equal(params[0], params[2]) and torch.equal(params[1], params[3])
    assert torch.equal(together.state[params[0]]["state1"], apart[0].state[params[2]]["state1"])


@pytest.mark.parametrize(
    ("name", "bits", "wanted"),
    [
        ("AdamW8bit", 32, 32),
        ("AdamW8bit", 8, 8),
        ("AdamW", 8, 8),
        ("AdamW32bit", 32, 32),
        ("AdamW32bit", 8, 0),
    ],
)
def test_bits_of_single_parameters(name, bits, wanted):
    params = [parameter(5000), parameter(5000)]
    optim.override(params[0], optim_bits=bits)
    optimizer = getattr(optim, name)(params)
    if wanted == 0:
        with pytest.raises(ValueError, match=r"\[AdamW32bit\] optim_bits: got 8, want 32"):
            step(optimizer)
        return
    step(optimizer)
    dtypes = [optimizer.state[param]["state1"].dtype for param in params]
    assert dtypes[0] == (torch.uint8 if wanted == 8 else torch.float32)
    assert dtypes[1] == (torch.uint8 if name == "AdamW8bit" else torch.float32)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "deepcopy with the model"])
def test_copies_of_an_optimizer_keep_what_single_parameters_have(how):
    model = torch.nn.Linear(70, 70)
    optim.override(model.weight, optim_bits=32, lr=0.5)
    optimizer = optim.AdamW8bit(model.parameters(), lr=0.01)
    if how == "deepcopy":
        again = copy.deepcopy(optimizer)
    elif how == "pickle":
        again = pickle.loads(pickle.dumps(optimizer))
    elif how == "torch.save":
        file = io.BytesIO()
        torch.save(optimizer, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
    else:
        twin, again = copy.deepcopy((model, optimizer))
        assert again.param_groups[0]["params"][0] is twin.weight
    step(optimizer)
    step(again)
    for a, b in zip(model.parameters(), again.param_groups[0]["params"], strict=True):
        assert torch.equal(a, b) and a is not b
    assert again.state[again.param_groups[0]["params"][0]]["state1"].dtype == torch.float32


def test_overrides_count_whenever_they_come(place):
    """In a run and in a copy of it alike."""
    params = [parameter(300, device=place, seed=i) for i in range(3)]
    optimizer = optim.SGD(params, lr=0.1)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    for rate, other in ((0.0, params[1]), (0.5, params[2])):
        before = [param.detach().clone() for param in params]
        optim.override(other, lr=rate)
        optimizer.step()
        assert torch.equal(params[0], before[0] - 0.1) and torch.equal(params[1], before[1])
    torch.testing.assert_close(params[2].detach(), before[2] - 0.5)
    optim.override(params[1])
    before = params[1].detach().clone()
    optimizer.step()
    assert torch.equal(params[1], before - 0.1)


def test_signatures_can_be_read():
    """As command lines and configuration tools do."""
    kinds = [kind for kind in vars(optim).values() if isinstance(kind, type) and kind is not optim.Optimizer]
    optimizers = [kind for kind in kinds if issubclass(kind, optim.Optimizer)]
    assert optim.PagedAdamW8bit in optimizers and optim.Muon in optimizers
    for kind in optimizers:
        assert typing.get_type_hints(kind.__init__)["options"] == typing_extensions.Unpack[optim.Options]
