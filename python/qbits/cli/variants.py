"""What the demo compares: dense float32 and bfloat16, then every format of the table that layers hold."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

import qbits

Model = TypeVar("Model", bound=nn.Module)

CALLS = {
    "nf4-dq": 'quantize_(model, "nf4", double_quant=True)',
    "int8-t0": 'quantize_(model, "int8", threshold=0)',
}
"""How to make the rows that are not called after their format."""


@dataclass(frozen=True)
class Variant:
    """One row of the demo's tables."""

    name: str
    dtype: torch.dtype  # of everything that is not quantized
    quantization: qbits.QuantizeConfig | None = None

    def apply(self, model: Model) -> Model:
        """A quantized copy of `model`, which has this dtype already; tensors that stay dense are shared."""
        copied = share(model)
        if self.quantization is not None:
            qbits.quantize_(copied, self.quantization)
        return copied


def share(model: Model) -> Model:
    """A copy of the modules of `model` around the same parameters and buffers."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def cast(model: Model, dtype: torch.dtype) -> Model:
    """A copy of `model`, of Transformers, with parameters in `dtype`, as they would be loaded.

    Buffers keep theirs, unlike in `model.to(dtype)`: bfloat16 rotary frequencies are wrong far into a text.
    """
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(dtype)
    copied.config.dtype = dtype
    return copied


def variants(names: list[str] | None = None) -> list[Variant]:
    """The rows called `names`, all by default; float32 is always there, first, for comparison.

    Raises:
        ValueError: an unknown name.
    """
    known = {v.name: v for v in (Variant("fp32", torch.float32), Variant("bf16", torch.bfloat16))}
    for row in qbits.FORMATS.values():
        if row.in_layers:
            plain = qbits.QuantizeConfig(format=row.name)
            known[row.name] = Variant(row.name, torch.bfloat16, plain)
        if row.name == "nf4":
            double = qbits.QuantizeConfig(format=row.name, double_quant=True)
            known["nf4-dq"] = Variant("nf4-dq", torch.bfloat16, double)
        if row.name == "int8":
            whole = qbits.QuantizeConfig(format=row.name, threshold=0.0)
            known["int8-t0"] = Variant("int8-t0", torch.bfloat16, whole)
    if names is None:
        return list(known.values())
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"[demo] formats: got {', '.join(map(repr, unknown))}, want some of {', '.join(known)}"
        )
    return [variant for name, variant in known.items() if name == "fp32" or name in names]
