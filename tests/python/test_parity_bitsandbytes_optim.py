"""State dicts of optimizers go both ways between qbits and the installed bitsandbytes, run side by side.

From the same state a step gives the same parameters. New 8-bit codes are not compared: on the CPU
bitsandbytes takes them from uniform bins; test_optim_formulas.py has its blockwise update as a model.
"""

import copy
import math

import pytest
import torch

from optim_cases import gradients, parameter
from qbits import optim

pytestmark = pytest.mark.filterwarnings("ignore")
bnb = pytest.importorskip("bitsandbytes")

# Arguments of both.
CASES = {
    "AdamW": {"lr": 1e-2, "weight_decay": 0.1},
    "Adam": {"lr": 1e-2},
    "Lion": {"lr": 1e-3, "weight_decay": 0.1},
    "RMSprop": {"lr": 1e-3, "alpha": 0.9},
    "Adagrad": {"lr": 1e-2},
    "SGD": {"lr": 1e-2, "momentum": 0.9},
    "AdEMAMix": {"lr": 1e-2, "t_alpha": 20, "t_beta3": 20},
}
SHAPES = ((4096,), (70, 130), (5000,), (100,))


def pair(name, bits, place):
    arguments, shapes = dict(CASES[name]), SHAPES
    if place.type == "cuda":  # where bitsandbytes decays weights late, and mixes scales of AdEMAMix
        arguments["weight_decay"] = 0.0
        shapes = [shape for shape in SHAPES if name != "AdEMAMix" or math.prod(shape) % 256 == 0]
    params = [[parameter(shape, device=place, seed=i) for i, shape in enumerate(shapes)] for _ in range(2)]
    # bitsandbytes' AdEMAMix32bit makes the state of another algorithm.
    peer = "AdEMAMix" if (name, bits) == ("AdEMAMix", 32) else f"{name}{bits}bit"
    classes = (getattr(bnb.optim, peer), getattr(optim, f"{name}{bits}bit"))
    return params, [cls(own, **arguments) for cls, own in zip(classes, params, strict=True)]


def step(optimizer, params, t):
    for i, param in enumerate(params):
        (grad,) = gradients(param.shape, 1, seed=50 * t + i)
        param.grad = grad.to(param.device)
    optimizer.step()


def assert_same_step(ours, theirs, before):
    """On the GPU bitsandbytes' fast powf leaves 1 - beta^t, and with it the update, a relative error."""
    bound = 1e-5 + 1e-5 * theirs.abs()
    if before.is_cuda:
        bound += 2e-4 * (theirs - before).abs()
    assert ((ours - theirs).abs() <= bound).all()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    return torch.device(request.param)


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", CASES)
def test_a_run_of_bitsandbytes_goes_on_here(name, bits, place):
    (theirs, ours), (peer, own) = pair(name, bits, place)
    for t in range(3):
        step(peer, theirs, t)
    for a, b in zip(ours, theirs, strict=True):
        a.data.copy_(b.data)
    before = [b.detach().clone() for b in theirs]
    own.load_state_dict(copy.deepcopy(peer.state_dict()))
    step(peer, theirs, 3)
    step(own, ours, 3)
    for a, b, start in zip(ours, theirs, before, strict=True):
        assert float(own.state[a]["step"]) == 4
        assert_same_step(a, b, start)


@pytest.mark.parametrize("layout", ["wrapped", "flat", "by row"])
@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", CASES)
def test_a_run_of_here_goes_on_in_bitsandbytes(name, bits, layout, place):
    (theirs, ours), (peer, own) = pair(name, bits, place)
    for t in range(3):
        step(own, ours, t)
    if layout == "by row":  # as DTensors leave it
        own.load_state_dict(optim.rows_of_state(own.state_dict()))
        step(own, ours, 3)
    for a, b in zip(ours, theirs, strict=True):
        b.data.copy_(a.data)
    saved = optim.to_bitsandbytes(own.state_dict(), wrapped=layout != "flat")
    if layout == "by row":
        own.load_state_dict(optim.flat_state(own.state_dict()))
    peer.load_state_dict(saved)
    before = [b.detach().clone() for b in theirs]
    step(own, ours, 4)
    step(peer, theirs, 4)
    for a, b, start in zip(ours, theirs, before, strict=True):
        assert peer.state[b]["step"] == (5 if layout == "by row" else 4)
        assert_same_step(a, b, start)


@pytest.mark.parametrize("name", ["LAMB", "LARS"])
def test_scaled_layers_are_loaded_there(name):
    """Their steps are others; what they start from is the same."""
    param, other = parameter((80, 80)), parameter((80, 80))
    own = getattr(optim, f"{name}8bit")([param])
    momentum = {"momentum": 0.9} if name == "LARS" else {}
    peer = getattr(bnb.optim, f"{name}8bit")([other], lr=0.1, **momentum)
    step(own, [param], 0)
    peer.load_state_dict(optim.to_bitsandbytes(own.state_dict()))
    assert torch.equal(peer.state[other]["state1"], own.state[param]["state1"])
    step(peer, [other], 1)
    assert peer.state[other]["step"] == 2


@pytest.mark.parametrize(("name", "key"), [("SGD", "momentum"), ("RMSprop", "alpha")])
def test_what_betas_hold_there_is_loaded(name, key):
    param, other = parameter((80, 80)), parameter((80, 80))
    peer = getattr(bnb.optim, f"{name}32bit")([param], lr=0.1, **{key: 0.75})
    step(peer, [param], 0)
    own = getattr(optim, name)([other], lr=0.1)
    own.load_state_dict(copy.deepcopy(peer.state_dict()))
    assert own.param_groups[0][key] == 0.75 and "betas" not in own.param_groups[0]
