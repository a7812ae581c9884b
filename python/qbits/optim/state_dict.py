"""The state of optimizers as it is saved, here and by bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qbits import _C
from qbits.formats import FORMATS
from qbits.optim import sharding

BLOCK = _C.STATE_BLOCK_SIZE
ALGORITHMS = _C.optimizer_algorithms()
BITSANDBYTES = "__bnb_optimizer_quant_state__"  # where bitsandbytes keeps tensors, from 0.49.2 on
_OLD_BLOCK = 2048  # of bitsandbytes before 0.44
_KEYS = {"step", "state1", "state2", "absmax1", "absmax2", "gnorm_vec"}


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
    """A tensor that torch.optim takes for something else, and leaves alone."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def hide_tensors(saved: dict[str, Any]) -> dict[str, Any]:
    """A state dict whose state holds no tensors."""
    return {**saved, "state": {key: _flat(own) for key, own in saved["state"].items()}}


def _flat(own: Any) -> Any:
    if not isinstance(own, dict):
        return own
    flat = {key: value for key, value in own.items() if key != BITSANDBYTES} | own.get(BITSANDBYTES, {})
    return {key: Hidden(value) if isinstance(value, Tensor) else value for key, value in flat.items()}


def show_tensors(own: dict[str, Any], param: Tensor, device: torch.device) -> dict[str, Any]:
    """The state of a parameter as the step needs it: on a device, a step count in a tensor, no maps."""
    shown = {key: _shown(value, device) for key, value in own.items()}
    if "step" in shown and not isinstance(shown["step"], Tensor):
        shown["step"] = torch.tensor(float(shown["step"]), dtype=torch.float32, device=device)
    for key in ("qmap1", "qmap2", "unorm_vec"):  # bitsandbytes': the maps are the same for all
        shown.pop(key, None)
    blocks = (param.numel() + BLOCK - 1) // BLOCK
    for i in (1, 2):
        scales = shown.get(f"absmax{i}")
        if scales is None:
            continue
        is_flat = scales.ndim - sharding.lead(shown, i) == 1
        if is_flat and scales.shape[-1] < blocks:
            wide = scales.repeat_interleave(_OLD_BLOCK // BLOCK, -1)[..., :blocks].contiguous()
            shown[f"absmax{i}"] = wide
    return sharding.fitted(shown, param)


def check(own: dict[str, Any], param: Tensor, algorithm: str, name: str) -> None:
    """Raises ValueError unless what is loaded, as shown, can be the state of a parameter, or is none."""
    if unknown := sorted(map(str, own.keys() - _KEYS)):
        raise ValueError(
            f"[{name}] state: got {', '.join(unknown)}, want what optimizers of qbits or bitsandbytes have"
        )
    wanted = {f"state{i}": count for i, count in enumerate(ALGORITHMS[algorithm][1:], 1) if count > 0}
    found = {"state1", "state2"} & own.keys()
    if wanted and found and found != wanted.keys():
        got, want = " and ".join(sorted(found)), " and ".join(wanted)
        raise ValueError(f"[{name}] state: got {got}, want {want}, as this algorithm has")
    for key in sorted(found & wanted.keys()):
        numbers, due = own[key].numel(), wanted[key] * param.numel()
        if numbers != due:
            raise ValueError(f"[{name}] {key}: got {numbers} numbers, want {due} for {list(param.shape)}")


def to_bitsandbytes(saved: dict[str, Any], wrapped: bool = True) -> dict[str, Any]:
    """A state dict of an optimizer of qbits as bitsandbytes' optimizer of the same name loads it.

    Hyperparameters have the names they have here; where bitsandbytes has others, its loader wants them added.

    Args:
        saved: of an optimizer here; state of DTensors, whole, gets blocks over flattened parameters.
        wrapped: tensors in a dict of their own, as bitsandbytes from 0.49.2 on saves them. Versions from 0.44
            on, whose blocks have 256 elements, too, load them without.

    Raises:
        TypeError: DTensors in the state.
    """
    return {**saved, "state": {key: _theirs(own, wrapped) for key, own in saved["state"].items()}}


def _theirs(own: Any, wrapped: bool) -> Any:
    if not isinstance(own, dict) or "step" not in own:
        return own
    own = sharding.convert(own, by_row=False)
    tensors = {key: value for key, value in own.items() if key != "step"}
    for i, name in ((1, "dynamic"), (2, "dynamic_unsigned")):
        if f"absmax{i}" in tensors:
            device = tensors[f"absmax{i}"].device
            tensors[f"qmap{i}"] = torch.tensor(FORMATS[name].codebook, dtype=torch.float32, device=device)
    steps = int(own["step"])
    return {"step": steps, BITSANDBYTES: tensors} if wrapped else {"step": steps, **tensors}


def _shown(value: Any, device: torch.device) -> Any:
    if isinstance(value, Hidden):
        return value.tensor.to(device, copy=True)
    return value.to(device) if isinstance(value, Tensor) else value
