"""How FSDP2 (torch.distributed.fsdp.fully_shard) shards a QuantizedTensor: by rows, still quantized."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from qbits.tensor import QuantizedTensor

_GATHERED = ("codes", "absmax", "scales", "zeros", "nested_absmax")


def pre_all_gather(
    shard: QuantizedTensor, mesh: Any, outer_size: torch.Size
) -> tuple[tuple[Tensor, ...], Any]:
    """The tensors every rank sends and what it keeps to put the gathered ones together.

    Raises:
        ValueError: rows do not divide evenly, or blocks straddle the rows of two ranks. Every rank
            raises the same, so that none waits for the others.
    """
    ranks = mesh.size()
    if outer_size[0] % ranks:
        want = f"a multiple of the {ranks} ranks"
        raise ValueError(f"[fully_shard] rows of a {shard.format} weight: got {outer_size[0]}, want {want}")
    if not isinstance(shard, QuantizedTensor) or shard.codes.dim() != 2:
        raise ValueError(f"[fully_shard] weight: got {shard!r}, want rows that fall on bytes")
    names = [name for name in _GATHERED if getattr(shard, name) is not None]
    # For a single rank torch hands back the first tensor alone, whatever it was given.
    names, rest = (names, []) if ranks > 1 else (names[:1], names[1:])
    kept = {name: getattr(shard, name) for name in (*rest, "nested_code", "offset")}
    return tuple(getattr(shard, name).contiguous() for name in names), (names, kept, tuple(outer_size))


def post_all_gather(
    shard: QuantizedTensor,
    outputs: tuple[Tensor, ...],
    metadata: Any,
    param_dtype: torch.dtype,
    out: Any,
) -> tuple[QuantizedTensor, tuple[Tensor, ...]] | None:
    """The whole weight over the memory of `outputs`. FSDP refills and frees that memory by itself."""
    names, kept, size = metadata
    tensors = dict(zip(names, outputs, strict=True))
    if out is not None:
        for name, tensor in {**tensors, **kept}.items():
            held = getattr(out, name)
            if held is not None and held.data_ptr() != tensor.data_ptr():
                with _unnoticed(held):
                    held.copy_(tensor)
        return None
    matrix = (tensors["codes"].shape[0], shard.cols)
    return shard.like({**tensors, **kept}, size, param_dtype, matrix), ()


def _unnoticed(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Where a write to `tensor`, by FSDP for the backward pass, is none to autograd, which has saved it."""
    if tensor.is_inference():
        return contextlib.nullcontext()
    return torch.autograd._unsafe_preserve_version_counter(tensor)
