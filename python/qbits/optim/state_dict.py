"""The state of optimizers as it is saved, here and by bitsandbytes."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from qbits import _C
from qbits.formats import FORMATS
from qbits.optim import sharding
from qbits.optim.clipping import HISTORY

BLOCK = _C.STATE_BLOCK_SIZE
ALGORITHMS = _C.optimizer_algorithms()
BITSANDBYTES = "__bnb_optimizer_quant_state__"  # where bitsandbytes keeps tensors, from 0.49.2 on
# What bitsandbytes keeps as the first of `betas`, by kinds of state whose optimizers here have none.
FIRST_BETA = {"momentum": "momentum", "lars": "momentum", "rmsprop": "alpha"}
_OLD_BLOCK = 2048  # of bitsandbytes before 0.44
_KEYS = {"step", "state1", "state2", "absmax1", "absmax2", "kahan_comp", "gnorm_vec"}
_UNUSED = {"qmap1", "qmap2", "unorm_vec"}  # of bitsandbytes


Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


def layout(param: Tensor, algorithm: str, is_8bit: bool) -> Layout:
    """Shapes and dtypes of the state of a parameter, without its step, by their names."""
    found: Layout = {}
    for i, numbers in enumerate(ALGORITHMS[algorithm][1:], 1):
        lead = (numbers,) if numbers > 1 else ()
        if numbers > 0:
            found[f"state{i}"] = ((*lead, *param.shape), torch.uint8 if is_8bit else torch.float32)
        if numbers > 0 and is_8bit:
            found[f"absmax{i}"] = ((*lead, *sharding.scales_shape(param)), torch.float32)
    return found


class Hidden:
    """What torch.optim leaves alone when it loads it: it would cast tensors, and take strings apart."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def hidden(saved: dict[str, Any]) -> dict[str, Any]:
    """A state dict whose state is hidden."""
    return {**saved, "state": {key: _flat(own) for key, own in saved["state"].items()}}


def _flat(own: Any) -> Any:
    if not isinstance(own, dict):
        return own
    flat = {key: value for key, value in own.items() if key != BITSANDBYTES} | own.get(BITSANDBYTES, {})
    return {key: Hidden(value) for key, value in flat.items()}


def loaded(
    own: dict[str, Any], param: Tensor, device: torch.device, algorithm: str, name: str
) -> dict[str, Any]:
    """What was saved of a parameter as the step needs it: on a device, steps in a tensor, blocks of 256.

    Raises:
        ValueError, TypeError: it cannot be the state of this parameter in this algorithm. None at all may be.
    """
    if not isinstance(own, dict):
        raise TypeError(f"[{name}] state: got {type(own).__name__}, want a dict")
    shown = {key: _shown(value, device) for key, value in own.items() if key not in _UNUSED}
    if "step" in own:
        shown["step"] = _steps(own["step"], device, name)
    _check(shown, param, algorithm, name)
    shown = {key: _packed(value) for key, value in shown.items()}
    for i, numbers in enumerate(ALGORITHMS[algorithm][1:], 1):
        codes, scales = shown.get(f"state{i}"), shown.get(f"absmax{i}")
        if numbers > 0 and codes is not None and (codes.dtype == torch.uint8 or scales is not None):
            lead = (numbers,) if numbers > 1 else ()
            shown[f"absmax{i}"] = _scales(scales, param, lead, f"[{name}] absmax{i}")
    if "kahan_comp" in shown and shown["kahan_comp"].dtype != param.dtype:
        del shown["kahan_comp"]  # it goes on where the bits of another dtype end
    return sharding.fitted(shown, param)


def _shown(value: Any, device: torch.device) -> Any:
    if isinstance(value, Hidden):
        return value.value.to(device, copy=True) if isinstance(value.value, Tensor) else value.value
    return value.to(device) if isinstance(value, Tensor) else value


def _packed(value: Tensor) -> Tensor:
    """Without gaps, as the step wants what this process has."""
    return value if sharding.as_dtensor(value) is not None else value.contiguous()


def _steps(value: Any, device: torch.device, name: str) -> Tensor:
    tensor = value.value if isinstance(value, Hidden) else value
    is_tensor = isinstance(tensor, Tensor)
    if tensor.numel() != 1 if is_tensor else not isinstance(tensor, Real):
        got = f"a tensor of shape {list(tensor.shape)}" if is_tensor else repr(tensor)
        raise TypeError(f"[{name}] step: got {got}, want a number")
    # One on a GPU is not looked at: that would wait for it.
    if not (is_tensor and tensor.is_cuda) and not 0 <= float(tensor) < math.inf:
        raise ValueError(f"[{name}] step: got {float(tensor)}, want a finite number of at least 0")
    if not is_tensor:
        return torch.tensor(float(tensor), dtype=torch.float32, device=device)
    is_saved = isinstance(value, Hidden)
    return tensor.to(device, torch.float32, copy=True).reshape(()) if is_saved else tensor.to(device)


def _scales(scales: Tensor | None, param: Tensor, lead: tuple[int, ...], what: str) -> Tensor:
    """Those of blocks of 256, over the flat parameter or by its rows."""
    numel = param.numel()
    flat, old = ((*lead, math.ceil(numel / block)) for block in (BLOCK, _OLD_BLOCK))
    by_row = (*lead, param.shape[0], math.ceil(param.shape[1:].numel() / BLOCK)) if param.ndim > 1 else flat
    shape = None if scales is None else tuple(scales.shape)
    if scales is None or shape not in (flat, old, by_row):
        got = "none" if shape is None else f"shape {list(shape)}"
        want = f"{list(flat)} for blocks of {BLOCK}, or {list(old)} for blocks of {_OLD_BLOCK}"
        raise ValueError(f"{what}: got {got}, want {want}")
    if shape in (flat, by_row):
        return scales
    return scales.repeat_interleave(_OLD_BLOCK // BLOCK, -1)[..., : flat[-1]].contiguous()


def _check(own: dict[str, Any], param: Tensor, algorithm: str, name: str) -> None:
    if unknown := sorted(map(str, own.keys() - _KEYS)):
        raise ValueError(
            f"[{name}] state: got {', '.join(unknown)}, want what optimizers of qbits or bitsandbytes have"
        )
    for key, value in own.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"[{name}] {key}: got {type(value).__name__}, want a tensor")
    wanted = {f"state{i}": count for i, count in enumerate(ALGORITHMS[algorithm][1:], 1) if count > 0}
    found = {"state1", "state2"} & own.keys()
    if wanted and found and found != wanted.keys():
        got, want = " and ".join(sorted(found)), " and ".join(wanted)
        raise ValueError(f"[{name}] state: got {got}, want {want}, as this algorithm has")
    due = {key: wanted[key] * param.numel() for key in sorted(found & wanted.keys())}
    if "kahan_comp" in own:
        due["kahan_comp"] = param.numel()
    if "gnorm_vec" in own:
        due["gnorm_vec"] = HISTORY
    for key, count in due.items():
        if (numbers := own[key].numel()) != count:
            raise ValueError(f"[{name}] {key}: got {numbers} numbers, want {count} for {list(param.shape)}")
    for key in own.keys() - {"step", "kahan_comp"}:
        dtype = own[key].dtype
        is_8bit = key.startswith("state") and (dtype == torch.uint8 or f"absmax{key[-1]}" in own)
        if dtype != (fits := torch.uint8 if is_8bit else torch.float32):
            raise TypeError(f"[{name}] {key}: got {dtype}, want {fits}")


def to_bitsandbytes(saved: dict[str, Any], wrapped: bool = True) -> dict[str, Any]:
    """A state dict of an optimizer of qbits as bitsandbytes' optimizer of the same name loads it.

    Hyperparameters keep their names, and come under bitsandbytes', too: `betas` holds momentum, or alpha of
    RMSprop. It has no compensation (kahan_sum), and no trust ratio of LAMB and LARS: steps there differ.

    Args:
        saved: of an optimizer here; state of DTensors, whole, gets blocks over flattened parameters.
        wrapped: tensors in a dict of their own, as bitsandbytes from 0.49.2 on saves them. Versions from 0.44
            on, whose blocks have 256 elements, too, load them without.

    Raises:
        TypeError: DTensors in the state.
    """
    state = {key: _theirs(own, wrapped) for key, own in saved["state"].items()}
    return {**saved, "state": state, "param_groups": [_their_group(own) for own in saved["param_groups"]]}


def _their_group(own: dict[str, Any]) -> dict[str, Any]:
    first = FIRST_BETA.get(own.get("state_of", "momentum"), "momentum")
    return {"betas": (own.get(first, 0.0), own.get("dampening", 0.0)), "eps": 0.0, **own}


def _theirs(own: Any, wrapped: bool) -> Any:
    if not isinstance(own, dict) or "step" not in own:
        return own
    own = sharding.convert(own, by_row=False)
    tensors = {key: value for key, value in own.items() if key not in ("step", "kahan_comp")}
    for i, name in ((1, "dynamic"), (2, "dynamic_unsigned")):
        if f"absmax{i}" in tensors:
            device = tensors[f"absmax{i}"].device
            tensors[f"qmap{i}"] = torch.tensor(FORMATS[name].codebook, dtype=torch.float32, device=device)
    if tensors:
        device = next(iter(tensors.values())).device
        tensors["unorm_vec"] = torch.zeros(1, dtype=torch.float32, device=device)  # LAMB's and LARS' scratch
    steps = int(own["step"])
    return {"step": steps, BITSANDBYTES: tensors} if wrapped else {"step": steps, **tensors}
