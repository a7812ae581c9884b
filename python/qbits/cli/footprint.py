"""The bytes of a model's tensors; for `qbits demo --footprint`, of a model whose weights are not there."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qbits.cli.language_model import check_name
from qbits.cli.variants import Variant, cast

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model's parameters and buffers. Tied tensors count once."""

    weights: int  # codes of quantized weights and everything dense
    scales: int  # what quantization adds: scales, zeros, second-level scales, maps

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.scales


def footprint(model: nn.Module) -> Footprint:
    """Counts the tensors of `model`, which may be on the meta device."""
    weights = scales = 0
    seen: set[object] = set()
    for tensor in chain(model.parameters(), model.buffers()):
        for name, part in _parts(tensor):
            # Memory shared by tied weights is found by address, on the meta device by identity.
            key = id(part) if part.is_meta else (part.device, part.data_ptr())
            if part.numel() == 0 or key in seen:
                continue
            seen.add(key)
            if name in ("dense", "codes"):
                weights += part.nbytes
            else:
                scales += part.nbytes
    return Footprint(weights, scales)


def _parts(tensor: Tensor) -> list[tuple[str, Tensor]]:
    if hasattr(tensor, "__tensor_flatten__"):
        return [(name, getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0]]
    return [("dense", tensor)]


def model_config(name: str) -> PretrainedConfig:
    """A model's configuration: built here for the names in `_KNOWN`, else read from a folder or the hub."""
    from transformers import AutoConfig

    if name in _KNOWN:
        return _KNOWN[name]()
    check_name(name)
    return AutoConfig.from_pretrained(name)


def _opt_350m() -> PretrainedConfig:
    # Zhang et al. 2022, arXiv 2205.01068; the only OPT whose embedding is narrower than its layers.
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=50272,
        hidden_size=1024,
        num_hidden_layers=24,
        ffn_dim=4096,
        num_attention_heads=16,
        word_embed_proj_dim=512,
        max_position_embeddings=2048,
        do_layer_norm_before=False,
    )


_KNOWN = {"facebook/opt-350m": _opt_350m}


def footprints(config: Any, variants: list[Variant]) -> dict[str, Footprint]:
    """Builds the model of `config` with random weights, quantizes it for each variant and counts bytes."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        dense = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    random: nn.Module | None = None
    counted: dict[str, Footprint] = {}
    for variant in variants:
        if variant.quantization is None:
            counted[variant.name] = footprint(cast(dense, variant.dtype))
            continue
        if random is None:
            random = AutoModelForCausalLM.from_config(config, dtype=variant.dtype)
        counted[variant.name] = footprint(variant.apply(random))
    return counted
