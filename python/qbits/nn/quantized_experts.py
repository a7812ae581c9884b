"""Modules that hold the weights of a mixture of experts, each a parameter [E, N, K], as Transformers' do.

They keep their class, which knows how to use the weights. Hooks lay these out in state dicts, as other
quantized weights are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qbits.config import QuantizeConfig
from qbits.nn.quantized_module import loaded_weight, quantized_parameter
from qbits.state_dict import entries_of, weight_entries
from qbits.tensor import QuantizedTensor


def expert_weights(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The dense parameters of `module` that hold a matrix for each expert: 3-D ones of a class named so."""
    if "Experts" in type(module).__name__:
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dim() == 3 and not isinstance(parameter, QuantizedTensor):
                yield name, parameter


def quantized_expert_weights(module: nn.Module) -> Iterator[tuple[str, QuantizedTensor]]:
    """Those `quantize_experts` has made."""
    if "Experts" in type(module).__name__:
        for name, parameter in module._parameters.items():
            if isinstance(parameter, QuantizedTensor) and parameter.dim() == 3:
                yield name, parameter


def quantize_experts(
    module: nn.Module,
    config: QuantizeConfig,
    name: str,
    device: torch.device | str | None,
    made: dict[int, nn.Parameter],
) -> None:
    """Quantizes the weights of all experts, in place. Raises ValueError, naming the parameter, for a NaN.

    `made` keeps what becomes of each, by its id: other modules may share it.
    """
    for attribute, dense in list(expert_weights(module)):
        key = id(dense)
        if key not in made:
            values = dense.detach() if device is None else dense.detach().to(device)
            made[key] = quantized_parameter(values, config, f"{name}.{attribute}".removeprefix("."))
            del values
        module._parameters[attribute] = made[key]
        del dense  # one at a time
    keep_in_state_dicts(module)


def keep_in_state_dicts(module: nn.Module) -> None:
    """Lays the quantized weights out in the module's state dict, and loads those of one."""
    if _save not in module._state_dict_hooks.values():
        module.register_state_dict_post_hook(_save)
        module.register_load_state_dict_pre_hook(_load)


def dequantize_experts(module: nn.Module, dtype: torch.dtype | None, made: dict[int, nn.Parameter]) -> None:
    """Makes the weights dense, in place; `made` as for `quantize_experts`."""
    for name, weight in list(quantized_expert_weights(module)):
        if id(weight) not in made:
            made[id(weight)] = nn.Parameter(weight.dequantize(dtype), requires_grad=False)
        module._parameters[name] = made[id(weight)]


def _save(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for name, weight in quantized_expert_weights(module):
        if weight.is_meta:
            continue
        for key, value in weight_entries(weight).items():
            state_dict[f"{prefix}{name}.{key}" if key else f"{prefix}{name}"] = value


def _load(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Loads the weights as those of Linear4bit; torch then copies each onto itself, or assigns it."""
    assign = bool(local_metadata.get("assign_to_params_buffers", False))
    for name, weight in list(quantized_expert_weights(module)):
        name = f"{prefix}{name}"
        entries: dict[str, Tensor] = entries_of(state_dict, name)
        if not entries or isinstance(entries.get(""), QuantizedTensor):
            continue
        for key in entries:
            del state_dict[f"{name}.{key}" if key else name]
        state_dict[name] = weight
        try:
            with torch.no_grad():
                loaded = loaded_weight(weight, entries, _config(weight), name, assign)
                if assign:
                    state_dict[name] = loaded
                else:
                    weight.data = loaded
        except (ValueError, TypeError) as error:
            error_msgs.append(f"{name}: {error}")


def _config(weight: QuantizedTensor) -> QuantizeConfig:
    return QuantizeConfig(
        format=weight.format,
        block_size=weight.block_size,
        double_quant=weight.double_quant,
        scale_dtype=None if weight.scales is None else weight.scales.dtype,
    )
