"""DTensors (FSDP2, tensor parallelism): what state they have, and blocks by rows or over whole tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qbits import _C
from qbits.formats import FORMATS
from qbits.ops.dequantize_blockwise import dequantize_blockwise
from qbits.ops.quantize_blockwise import quantize_blockwise

BLOCK = _C.STATE_BLOCK_SIZE
ZERO_CODES = {1: 127, 2: 0}  # of state1 and state2
MAPS = {1: "dynamic", 2: "dynamic_unsigned"}


def as_dtensor(tensor: Tensor) -> Any:
    """The tensor if it is a DTensor, else None."""
    if type(tensor) in (Tensor, torch.nn.Parameter) or not torch.distributed.is_available():
        return None
    from torch.distributed.tensor import DTensor

    return tensor if isinstance(tensor, DTensor) else None


def _split(param: Any) -> dict[int, int]:
    """In how many parts each dimension of a DTensor is split, of those that are."""
    parts: dict[int, int] = {}
    for i, placement in enumerate(param.placements):
        if placement.is_partial():
            raise TypeError(
                f"[optimizer_step] param: got a DTensor of {placement}, want sharded or replicated"
            )
        dim = getattr(placement, "dim", None)
        if dim is not None:
            parts[dim] = parts.get(dim, 1) * param.device_mesh.size(i)
    return parts


def allows_8_bits(param: Tensor) -> bool:
    """Whether no block of 8-bit state would be split: rows are whole, or cut between blocks."""
    if as_dtensor(param) is None:
        return True
    parts = _split(param)
    if param.ndim < 2:
        return not parts
    columns = parts.pop(1, 1) if param.ndim == 2 else 1
    return not parts.keys() - {0} and (columns == 1 or param.shape[1] % (BLOCK * columns) == 0)


def is_split(param: Tensor) -> bool:
    """Whether other processes have other parts of a parameter."""
    return as_dtensor(param) is not None and any(parts > 1 for parts in _split(param).values())


def scales_shape(param: Tensor) -> tuple[int, ...]:
    """Blocks run over a plain tensor, and start anew at each row along dimension 0 of a DTensor."""
    if as_dtensor(param) is None or param.ndim < 2:
        return (math.ceil(param.numel() / BLOCK),)
    return (param.shape[0], math.ceil(param.shape[1:].numel() / BLOCK))


def full_like(param: Tensor, before: int, shape: tuple[int, ...], value: int, dtype: torch.dtype) -> Tensor:
    """State of a parameter, or scales of it, with `before` dimensions before those of the parameter."""
    dtensor = as_dtensor(param)
    if dtensor is None:
        return torch.full(shape, value, dtype=dtype, device=param.device)
    from torch.distributed import tensor as dt

    mesh, placements = dtensor.device_mesh, _placements(dtensor, before)
    return dt.full(shape, value, dtype=dtype, device_mesh=mesh, placements=placements)


def _placements(param: Any, before: int) -> list[Any]:
    """Those of state with `before` dimensions before those of the parameter."""
    if before == 0:
        return list(param.placements)
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    def moved(placement: Any) -> Any:
        if isinstance(placement, _StridedShard):
            return _StridedShard(placement.dim + before, split_factor=placement.split_factor)
        return Shard(placement.dim + before) if isinstance(placement, Shard) else placement

    return [moved(placement) for placement in param.placements]


def offset(param: Tensor) -> int:
    """The number of elements before this process' part of a DTensor. Raises TypeError for parts of a sum."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    dtensor = as_dtensor(param)
    _split(dtensor)
    mesh, placements = dtensor.device_mesh, dtensor.placements
    _, start = compute_local_shape_and_global_offset(dtensor.shape, mesh, placements)
    return sum(i * stride for i, stride in zip(start, dtensor.stride(), strict=True))


# --- Two layouts of 8-bit state -----------------------------------------------------------------------------


def rows_of_state(saved: dict[str, Any]) -> dict[str, Any]:
    """A state dict whose 8-bit blocks start anew at each row of a parameter, as those of DTensors do.

    The scales of a parameter [N, ...] of K elements a row become float32 [N, ceil(K / 256)]. Where K is a
    multiple of 256 nothing else changes; otherwise state is rounded to the nearest codes once more.

    Args:
        saved: of an optimizer of qbits, or its `state` by names; tensors are whole, not DTensors.

    Returns:
        The same with new tensors. Plain parameters take it, too: they keep the layout they load.

    Raises:
        TypeError: DTensors in the state.
    """
    return _with_states(saved, lambda own: convert(own, by_row=True))


def flat_state(saved: dict[str, Any]) -> dict[str, Any]:
    """The opposite of rows_of_state: scales float32 [ceil(N K / 256)], blocks over the flat parameter."""
    return _with_states(saved, lambda own: convert(own, by_row=False))


def _with_states(saved: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    return {**saved, "state": {key: change(own) for key, own in saved["state"].items()}}


def lead(own: dict[str, Any], i: int) -> int:
    """Dimensions of state1 or state2 before those of the parameter."""
    # Only algorithms with both have several numbers an element, in the first.
    return own["state1"].ndim - own["state2"].ndim if i == 1 and "state2" in own else 0


def convert(own: dict[str, Any], by_row: bool) -> dict[str, Any]:
    """The state of one parameter in the other layout, or as it is where it has that already."""
    new = dict(own)
    for i in (1, 2):
        codes, scales = own.get(f"state{i}"), own.get(f"absmax{i}")
        if codes is None or scales is None:
            continue
        if any(as_dtensor(tensor) is not None for tensor in (codes, scales)):
            raise TypeError(f"[convert] state{i}: got a DTensor, want a whole tensor")
        before = lead(own, i)
        if codes.ndim - before < 2 or (scales.ndim - before == 2) == by_row:
            continue
        pairs = zip(codes, scales, strict=True) if before else [(codes, scales)]
        done = [_convert(c, s, MAPS[i], by_row) for c, s in pairs]
        parts = [torch.stack(part) if before else part[0] for part in zip(*done, strict=True)]
        new[f"state{i}"], new[f"absmax{i}"] = parts
    return new


def _convert(codes: Tensor, scales: Tensor, name: str, by_row: bool) -> tuple[Tensor, Tensor]:
    rows, columns = codes.shape[0], codes.shape[1:].numel()
    blocks = math.ceil(columns / BLOCK)
    shape = (rows, blocks) if by_row else (math.ceil(codes.numel() / BLOCK),)
    if columns % BLOCK == 0:
        return codes, scales.reshape(shape)
    table = torch.tensor(FORMATS[name].codebook, dtype=torch.float32, device=codes.device)

    def decoded(flat: Tensor, flat_scales: Tensor) -> Tensor:
        return dequantize_blockwise(flat, flat_scales.reshape(-1), table, BLOCK, torch.float32)

    # A row as whole blocks; the zeros behind its end change no scale.
    padded = torch.zeros(rows, blocks * BLOCK, dtype=torch.float32, device=codes.device)
    if by_row:
        padded[:, :columns] = decoded(codes, scales).view(rows, columns)
        values = padded
    else:
        filled = torch.zeros(rows, blocks * BLOCK, dtype=torch.uint8, device=codes.device)
        filled[:, :columns] = codes.view(rows, columns)
        values = decoded(filled, scales)[:, :columns]
    new, absmax = quantize_blockwise(values.reshape(-1).contiguous(), table, BLOCK)
    if name == MAPS[1]:  # what has a minus sign never gets the code of zero
        new -= ((new == ZERO_CODES[1]) & values.reshape(-1).signbit()).to(torch.uint8)
    return new.view(values.shape)[:, :columns].reshape(codes.shape), absmax.view(shape)


def fitted(own: dict[str, Any], param: Tensor) -> dict[str, Any]:
    """State that was loaded, in the layout a parameter keeps: whole tensors are sharded as a DTensor is."""
    dtensor = as_dtensor(param)
    if dtensor is None or any(as_dtensor(v) is not None for v in own.values() if isinstance(v, Tensor)):
        return own
    from torch.distributed.tensor import distribute_tensor

    own = convert(own, by_row=True)
    if not allows_8_bits(param):
        own = _widened(own)
    for first, *rest in (("state1", "absmax1"), ("state2", "absmax2"), ("kahan_comp",)):
        if first not in own:
            continue
        placements = _placements(dtensor, own[first].ndim - param.ndim)
        for key in (first, *rest):
            if key in own:  # whole on every process: none sends
                own[key] = distribute_tensor(own[key], dtensor.device_mesh, placements, src_data_rank=None)
    return own


def _widened(own: dict[str, Any]) -> dict[str, Any]:
    """Flat 8-bit state as 32-bit state."""
    own = convert(own, by_row=False)
    for i in (1, 2):
        scales = own.pop(f"absmax{i}", None)
        if scales is None:
            continue
        codes = own[f"state{i}"]
        table = torch.tensor(FORMATS[MAPS[i]].codebook, dtype=torch.float32, device=codes.device)
        pairs = [(codes, scales)] if scales.ndim == 1 else zip(codes, scales, strict=True)
        wide = [dequantize_blockwise(c, s, table, BLOCK, torch.float32) for c, s in pairs]
        own[f"state{i}"] = torch.stack(wide) if scales.ndim > 1 else wide[0]
    return own


# --- Norms --------------------------------------------------------------------------------------------------


def local(tensor: Tensor) -> Tensor:
    """This process' part of a DTensor, and any other tensor itself."""
    dtensor = as_dtensor(tensor)
    return tensor if dtensor is None else dtensor.to_local()


def summed(squares: Tensor, mesh: Any, placements: Any) -> Tensor:
    """Sums over processes, of what each has of tensors with these placements."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    if any(placement.is_partial() for placement in placements):
        raise TypeError(
            "[clipping] grad: got a DTensor that holds parts of a sum, want sharded or replicated"
        )
    parts = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
    return DTensor.from_local(squares, mesh, parts, run_check=False).full_tensor()
