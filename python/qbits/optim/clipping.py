"""Clipping of gradients within the step: what they are divided by lies on the device, and nothing waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qbits.optim import sharding

HISTORY = 100  # norms of a parameter's last steps, as many as bitsandbytes keeps


@dataclass
class Scales:
    """What divides gradients in one step."""

    grad_scale: Tensor | None = None  # all of them; float32
    found_inf: Tensor | None = None  # float32: unless it is 0 there is no step
    not_finite: Tensor | None = None  # int64: 1 if a norm is to blame for that
    of_params: dict[Tensor, Tensor] = field(default_factory=dict)  # single ones; float32


def squares(grads: Sequence[Tensor]) -> list[Tensor]:
    """The squared norms of gradients on one device: float64 scalars, those of DTensors over all processes."""
    result: list[Tensor | None] = [None] * len(grads)
    kinds: dict[Any, list[int]] = {}
    for i, grad in enumerate(grads):
        dtensor = sharding.as_dtensor(grad)
        mesh = None if dtensor is None else (dtensor.device_mesh, dtensor.placements)
        kinds.setdefault((grad.dtype, mesh), []).append(i)
    for (_, mesh), where in kinds.items():
        local = [sharding.local(grads[i]) for i in where]
        own = torch.stack(torch._foreach_norm(local, 2.0, dtype=torch.float32)).double().square()
        if mesh is not None:
            own = sharding.summed(own, *mesh)
        # Lists, not indices: these would have to be copied to the device, which waits.
        for i, square in zip(where, own.unbind(), strict=True):
            result[i] = square
    return [square for square in result if square is not None]


def global_scale(
    norm: Tensor, most: float, grad_scale: Tensor | None, found_inf: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What makes the norm of all gradients at most `most`.

    Args:
        norm: float64 scalar, of gradients as they are, which have been multiplied by `grad_scale`.
        most: above 0.
        grad_scale, found_inf: float32, one element each, or None.

    Returns:
        A new grad_scale and found_inf, and whether found_inf is due to the norm alone: int64.
    """
    is_finite = norm.isfinite()
    scale = torch.ones_like(norm) if grad_scale is None else grad_scale.to(norm.device).double().reshape(())
    scale = torch.where(is_finite, torch.maximum(scale, norm / most), scale)
    found = torch.zeros_like(norm) if found_inf is None else found_inf.to(norm.device).double().reshape(())
    is_new = ~is_finite & (found == 0)
    return scale.float(), torch.where(is_new, 1.0, found).float(), is_new.long()


def percentile_scales(current: Tensor, states: Sequence[dict[str, Any]], percentile: int) -> list[Tensor]:
    """What makes norms of gradients at most a percentile of the last norms of the same parameters.

    The history of a parameter is `gnorm_vec` of its state, float32 [100]: squared norms, that of step t,
    counted from 1, in slot t % 100, as in bitsandbytes up to 0.49. A norm that is 0 or not finite leaves it
    alone: with a limit of 0 the parameter would never move again.

    Args:
        current: float64 [n], squared norms.
        states: of the parameters; all on one device.
        percentile: 1 to 99.
    """
    history = torch.stack([state["gnorm_vec"] for state in states])
    steps = torch.stack([state["step"] for state in states]).long() + 1
    squared = current.float()
    is_norm = squared.isfinite() & (squared > 0)
    slot = (steps % HISTORY)[:, None]
    history.scatter_(1, slot, torch.where(is_norm[:, None], squared[:, None], history.gather(1, slot)))
    torch._foreach_copy_([state["gnorm_vec"] for state in states], list(history.unbind()))
    # Slots without a norm hold 0 and come first. (bitsandbytes took them for norms.)
    count = (history > 0).sum(dim=1)
    index = HISTORY - count + torch.minimum(percentile * count // 100, count - 1)
    limit = history.sort(dim=1).values.gather(1, index[:, None])[:, 0]
    clips = is_norm & (squared > limit)
    return list(torch.where(clips, (squared / limit).sqrt(), 1.0).unbind())


def scales(
    params: Sequence[tuple[Tensor, Mapping[str, Any], dict[str, Any]]],
    most: float | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> Scales:
    """Those of a step of parameters that have gradients, each with its hyperparameters and its state."""
    with torch._C.DisableTorchFunctionSubclass():  # gradients of subclasses would make norms of subclasses
        return _scales(params, most, grad_scale, found_inf)


def _scales(
    params: Sequence[tuple[Tensor, Mapping[str, Any], dict[str, Any]]],
    most: float | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> Scales:
    result = Scales(grad_scale, found_inf)
    by_device: dict[torch.device, list[int]] = {}
    for i, (param, group, _) in enumerate(params):
        if most is not None or group["percentile_clipping"] < 100:
            by_device.setdefault(param.device, []).append(i)
    total = None
    for device, where in by_device.items():
        own = squares([dense_grad(params[i][0], "clipping") for i in where])
        if most is not None:
            sum_ = torch.stack(own).sum()
            total = sum_ if total is None else total + sum_.to(total.device, non_blocking=True)
        by_percentile: dict[int, list[int]] = {}
        for k, i in enumerate(where):
            by_percentile.setdefault(params[i][1]["percentile_clipping"], []).append(k)
        by_percentile.pop(100, None)
        for percentile, clipped in by_percentile.items():
            current = torch.stack([own[k] for k in clipped])
            if grad_scale is not None:
                current = current / grad_scale.to(device).double().reshape(()).square()
            states = [params[where[k]][2] for k in clipped]
            for state in states:
                if "gnorm_vec" not in state:
                    state["gnorm_vec"] = torch.zeros(HISTORY, dtype=torch.float32, device=device)
            for k, scale in zip(clipped, percentile_scales(current, states, percentile), strict=True):
                result.of_params[params[where[k]][0]] = scale
    if most is not None and total is not None:
        made = global_scale(total.sqrt(), most, grad_scale, found_inf)
        result.grad_scale, result.found_inf, result.not_finite = made
    return result


def dense_grad(param: Tensor, name: str) -> Tensor:
    """The gradient of a parameter. Raises TypeError for a sparse one; `name` stands in the message."""
    grad = param.grad
    if grad is None or grad.layout != torch.strided:
        raise TypeError(f"[{name}] grad: got a sparse gradient, want a dense one")
    return grad
