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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.optim.AdamW, r"\[AdamW\] state: got exp_avg, exp_avg_sq, want what optimizers of qbits"),
        (optim.Adagrad, r"\[AdamW\] state: got state1, want state1 and state2"),
        (optim.AdEMAMix, r"\[AdamW\] state1: got 12800 numbers, want 6400 for \[80, 80\]"),
    ],
)
def test_the_state_of_another_algorithm_is_refused(source, message):
    saved = saved_by(source([parameter((80, 80))]))
    param = parameter((80, 80))
    optimizer = optim.AdamW([param])
    before = copy.deepcopy(saved_by(optimizer))
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    after = optimizer.state_dict()
    assert before["param_groups"][0].items() <= after["param_groups"][0].items()
    for key, value in before["state"][0].items():
        assert torch.equal(after["state"][0][key], value)
    optimizer.step()


def test_state_of_another_shape_is_refused():
    saved = saved_by(optim.AdamW8bit([parameter((80, 80))]))
    optimizer = optim.AdamW8bit([parameter((80, 60))])
    with pytest.raises(ValueError, match=r"state1: got 6400 numbers, want 4800"):
        optimizer.load_state_dict(saved)


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
