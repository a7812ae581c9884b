"""accelerate's offload hooks with quantized weights.

The hooks fetch `weight` from a map made of the model's state dict, where a quantized weight is spread over
several keys. Here they get it whole, from memory and from disk alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from torch import Tensor, nn

from qbits.state_dict import WEIGHT_KEYS, key_of, weight_from_entries
from qbits.tensor import QuantizedTensor


class _QuantizedWeights(Mapping[str, Any]):
    """`weights` with the entries of each quantized weight put together under its name."""

    def __init__(self, weights: Mapping[str, Any], dtypes: dict[str, torch.dtype]) -> None:
        self.weights = weights
        self.dtypes = dtypes  # of the quantized weights, by name

    def __getitem__(self, name: str) -> Any:
        if name not in self.dtypes:
            return self.weights[name]
        entries: dict[str, Tensor] = {"": self.weights[name]}
        for suffix in filter(None, WEIGHT_KEYS.values()):
            try:
                entries[suffix] = self.weights[key_of(name, suffix)]
            except KeyError:
                continue
        if len(entries) == 1:  # a map made of parameters holds it whole already
            return entries[""]
        return weight_from_entries(entries).like(dtype=self.dtypes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


_init_hook = AlignDevicesHook.init_hook


def _init_hook_with_quantized(self: AlignDevicesHook, module: nn.Module) -> nn.Module:
    if self.offload and self.weights_map is not None:
        own = module.named_parameters(recurse=self.place_submodules)
        dtypes = {name: p.logical_dtype for name, p in own if isinstance(p, QuantizedTensor)}
        if dtypes:
            self.weights_map = _QuantizedWeights(self.weights_map, dtypes)
    return _init_hook(self, module)


AlignDevicesHook.init_hook = _init_hook_with_quantized
