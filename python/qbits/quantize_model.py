"""Quantizing and dequantizing the layers of a model in place, one at a time."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from qbits.codec import FLOATS, dtype_name
from qbits.config import QuantizeConfig, as_config
from qbits.formats import FORMATS
from qbits.nn import Embedding4bit, Embedding8bit, Linear4bit, Linear8bit
from qbits.nn.quantized_embedding import QuantizedEmbedding
from qbits.nn.quantized_experts import (
    dequantize_experts,
    expert_weights,
    quantize_experts,
    quantized_expert_weights,
)
from qbits.nn.quantized_linear import QuantizedLinear, is_conv1d
from qbits.nn.quantized_module import QuantizedModule, quantized_parameter
from qbits.tensor import QuantizedTensor

_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook"),
)

_STATE_HOOKS = (  # these may hold on to the module they were registered with
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


@dataclass
class _Place:
    """Where a module hangs in a model."""

    parent: nn.Module
    attribute: str
    name: str
    module: Any

    def replace(self, module: nn.Module) -> None:
        # Like assigning the attribute, but for modules of a Sequential or ModuleDict too.
        self.parent._modules[self.attribute] = module


def quantize_(
    model: nn.Module,
    config: str | QuantizeConfig = "nf4",
    *,
    skip: Iterable[str] | None = None,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> nn.Module:
    """Replaces the linear layers of `model` by 4-bit or 8-bit ones, in place, one after the other.

    nn.Linear and transformers' Conv1D are quantized, nn.Embedding if the config says so, and the weights of
    mixtures of experts, whose modules keep their class; "int8" leaves these weights dense. Subclasses of the
    layers, which may use their weight in their own way, layers whose weight is computed from others (by
    weight_norm, pruning, ...) and layers that are quantized already stay as they are; so do, with a warning,
    layers with buffers, parameters, modules or hooks on the state dict of their own. Hooks on calls are
    kept. A module or weight used in several places is quantized once and stays shared. Warns if there is
    nothing to quantize and nothing that has the format already.

    Args:
        model: its weights float32, bfloat16 or float16.
        config: a format ("nf4", "fp4", "int4", "int8") or a QuantizeConfig.
        skip: names of modules to leave alone: a full dotted name, some of its dotted parts ("lm_head",
            "layers.0"), or a pattern with `*`. By default the output embeddings and layers that share
            their weight with another kind of module; a list, also an empty one, takes the place of that, so
            that those it does not name are quantized, and untied. A name of no module warns.
        device: quantize there and leave the whole model there; by default each layer where it is.
        progress: show a bar; by default only on a terminal.
        options: beside the name of a format, the other fields of a QuantizeConfig: `double_quant=True`.

    Returns:
        `model`. Extra memory at any time: one layer.

    Raises:
        ValueError: an unknown format, before anything is changed; or a NaN or infinity in a weight, naming
            the parameter and the first bad index, with the layers before it quantized already.
        TypeError: a dtype that cannot be quantized, or an unknown option, before anything is changed.
    """
    config = as_config("quantize_", config, options)
    if not isinstance(model, nn.Module):
        raise TypeError(f"[quantize_] model: got {type(model).__name__}, want nn.Module")
    if _is_layer(model, config):
        want = f"a model that contains it, or {linear_class(config).__name__}.from_float"
        raise ValueError(f"[quantize_] model: got the layer {type(model).__name__} itself, want {want}")
    patterns = _output_names(model) if skip is None else _names("quantize_", skip)
    warn_of_no_module("quantize_", model, () if skip is None else patterns, _matches)
    _warn_of_extras(model, config, patterns)
    tied = _shared_with_others(model, config) if skip is None else set()
    groups = _by_weight(
        place
        for place in _walk(model, "", set())
        if _is_target(place.module, config)
        and not _matches(place.name, patterns)
        and id(place.module.weight) not in tied
    )
    mixtures = [
        place
        for place in _mixtures(model, expert_weights)
        if config.experts and not _matches(place.name, patterns)
    ]
    for first, *_ in groups:
        _check_dtype(f"{first.name}.weight", first.module.weight)
    for place in mixtures:
        for name, weight in expert_weights(place.module):
            _check_dtype(f"{place.name}.{name}".removeprefix("."), weight)
    groups += [[place] for place in mixtures]
    if not groups and not _holds(model, config.format):
        got = f"{type(model).__name__} with nothing to quantize"
        want = "dense linear layers in it that are not skipped"
        warnings.warn(f"[quantize_] model: got {got}, want {want}", stacklevel=2)
    made: dict[int, nn.Parameter] = {}
    for group in _drain(groups, "quantize", progress):
        if group[0] in mixtures:
            quantize_experts(group[0].module, config, group[0].name, device, made)
        else:
            _quantize_group(group, config, device)
    return model if device is None else model.to(device)


def dequantize_(
    model: nn.Module, dtype: torch.dtype | None = None, *, progress: bool | None = None
) -> nn.Module:
    """Replaces the quantized layers of `model` by dense ones, in place, one after the other.

    Args:
        model: any module.
        dtype: of the dense weights and of the layers' biases, which then are new parameters; by default each
            one's own.
        progress: show a bar; by default only on a terminal.

    Returns:
        `model`, with nn.Linear, nn.Embedding and, where there was one, Conv1D; weights not trainable, but for
        those that Linear8bit trains.

    Raises:
        ValueError: a quantized layer itself, which cannot be replaced in place.
        TypeError: not a module, or a dtype that is not float32, bfloat16 or float16.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"[dequantize_] model: got {type(model).__name__}, want nn.Module")
    if dtype is not None and dtype not in FLOATS:
        want = ", ".join(map(str, FLOATS))
        raise TypeError(f"[dequantize_] dtype: got {dtype!r}, want {want}")
    if isinstance(model, QuantizedModule):
        raise ValueError(
            f"[dequantize_] model: got the layer {type(model).__name__} itself, want one around it"
        )
    groups = _by_weight(p for p in _walk(model, "", set()) if isinstance(p.module, QuantizedModule))
    mixtures = _mixtures(model, quantized_expert_weights)
    groups += [[place] for place in mixtures]
    made: dict[int, nn.Parameter] = {}
    biases: dict[nn.Parameter, nn.Parameter] = {}
    for group in _drain(groups, "dequantize", progress):
        if group[0] in mixtures:
            dequantize_experts(group[0].module, dtype, made)
        else:
            _dequantize_group(group, dtype, biases)
    return model


def _names(op: str, skip: str | Iterable[str]) -> list[str]:
    names = [skip] if isinstance(skip, str) else list(skip) if isinstance(skip, Iterable) else [skip]
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"[{op}] skip: got {name!r}, want names of modules")
    return names


def warn_of_no_module(
    op: str, model: nn.Module, skip: Iterable[str], matches: Callable[[str, list[str]], bool]
) -> None:
    """Warns of each pattern of `skip` for which `matches(name, [pattern])` is true of no module's name."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for pattern in skip:
        if not any(matches(name, [pattern]) for name in names):
            warnings.warn(f"[{op}] skip: got {pattern!r}, which names no module", stacklevel=3)


def _walk(parent: nn.Module, prefix: str, above: set[int]) -> Iterator[_Place]:
    """Every place of every module below `parent`: a shared module once per place."""
    for attribute, module in parent._modules.items():
        if module is None or id(module) in above:
            continue
        yield _Place(parent, attribute, prefix + attribute, module)
        yield from _walk(module, f"{prefix}{attribute}.", above | {id(module)})


def _mixtures(model: nn.Module, weights: Callable[[nn.Module], Iterator[Any]]) -> list[_Place]:
    """The modules of `model`, itself included, that have expert weights, each once."""
    all_places = (_Place(model, "", "", model), *_walk(model, "", set()))
    places = {id(p.module): p for p in all_places if any(True for _ in weights(p.module))}
    return list(places.values())


def _is_target(module: Any, config: QuantizeConfig) -> bool:
    return _is_layer(module, config) and not _extras(module)


def _is_layer(module: Any, config: QuantizeConfig) -> bool:
    if type(module) is nn.Embedding and config.embeddings:
        return module.max_norm is None and _is_dense(module)
    return (type(module) is nn.Linear or is_conv1d(module)) and _is_dense(module)


def _is_dense(module: nn.Module) -> bool:
    # A weight that is no parameter is computed from others by a hook: weight_norm, spectral_norm, pruning.
    weight = module._parameters.get("weight")
    return weight is not None and not isinstance(weight, QuantizedTensor)


def _extras(module: nn.Module) -> list[str]:
    """What hangs on a layer that a quantized one in its place would lack."""
    parameters = module._parameters.keys() - {"weight", "bias"}
    hooks = [name for name in _STATE_HOOKS if getattr(module, name)]
    return sorted({*parameters, *module._buffers, *module._modules, *hooks})


def _warn_of_extras(model: nn.Module, config: QuantizeConfig, patterns: list[str]) -> None:
    for place in _walk(model, "", set()):
        extras = _extras(place.module) if _is_layer(place.module, config) else []
        if extras and not _matches(place.name, patterns):
            want = "weight and bias alone, or its name in skip: the layer stays dense"
            warnings.warn(f"[quantize_] {place.name}: got {', '.join(extras)}, want {want}", stacklevel=3)


def _holds(model: nn.Module, format: str) -> bool:
    return any(isinstance(p, QuantizedTensor) and p.format == format for p in model.parameters())


def _move_hooks(source: nn.Module, target: nn.Module) -> nn.Module:
    """Gives `target` the call hooks of `source`: the same dicts, so that handles still remove them."""
    for name in _HOOKS:
        setattr(target, name, getattr(source, name))
    return target


def _output_names(model: nn.Module) -> list[str]:
    """Names of the output embeddings: what transformers calls so, and any `lm_head`."""
    names = ["lm_head"]
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    if isinstance(head, nn.Module):
        names += [name for name, module in model.named_modules() if module is head]
    return names


def _shared_with_others(model: nn.Module, config: QuantizeConfig) -> set[int]:
    """Ids of the weights that a layer to be quantized shares with a module that stays as it is."""
    targets: set[int] = set()
    others: set[int] = set()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                mine = name == "weight" and _is_target(module, config)
                (targets if mine else others).add(id(parameter))
    return targets & others


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(
        f".{pattern}." in f".{name}." or ("*" in pattern and fnmatch.fnmatchcase(name, pattern))
        for pattern in patterns
    )


def _by_weight(places: Iterable[_Place]) -> list[list[_Place]]:
    """The places in order, those of modules that share a weight together."""
    groups: dict[int, list[_Place]] = {}
    for place in places:
        groups.setdefault(id(place.module.weight), []).append(place)
    return list(groups.values())


def _drain(groups: list[list[_Place]], what: str, progress: bool | None) -> Iterator[list[_Place]]:
    """Takes one group after the other out of `groups`, so that replaced modules are freed on the way."""
    disable = None if progress is None else not progress  # None: tqdm looks whether it has a terminal
    with tqdm(total=len(groups), desc=what, unit="layer", disable=disable, leave=False) as bar:
        groups.reverse()
        while groups:
            yield groups.pop()
            bar.update()


def _check_dtype(name: str, weight: Tensor) -> None:
    if weight.dtype not in FLOATS:
        want = ", ".join(map(dtype_name, FLOATS))
        raise TypeError(f"[quantize_] {name}: got {dtype_name(weight.dtype)}, want {want}")


def _quantize_group(group: list[_Place], config: QuantizeConfig, device: torch.device | str | None) -> None:
    modules: dict[int, nn.Module] = {}
    weights: dict[bool, nn.Parameter] = {}
    for place in group:
        module, transposed = place.module, is_conv1d(place.module)
        if transposed not in weights:
            dense = module.weight.detach() if device is None else module.weight.detach().to(device)
            dense = dense.t().contiguous() if transposed else dense
            weights[transposed] = quantized_parameter(dense, config, f"{place.name}.weight")
        if id(module) not in modules:
            layer = _quantized(module, weights[transposed], config, transposed)
            modules[id(module)] = _move_hooks(module, layer)
        place.replace(modules[id(module)])


def linear_class(config: QuantizeConfig) -> type[QuantizedLinear]:
    """The class of the linear layers that hold this format."""
    return Linear4bit if FORMATS[config.format].bits == 4 else Linear8bit


def _quantized(module: Any, weight: nn.Parameter, config: QuantizeConfig, transposed: bool) -> nn.Module:
    if isinstance(module, nn.Embedding):
        embedding = Embedding4bit if FORMATS[config.format].bits == 4 else Embedding8bit
        return embedding.from_parameter(weight, config, module.padding_idx, module.training)
    return linear_class(config).from_parameter(weight, module.bias, config, transposed, module.training)


def _dequantize_group(
    group: list[_Place], dtype: torch.dtype | None, biases: dict[nn.Parameter, nn.Parameter]
) -> None:
    modules: dict[int, nn.Module] = {}
    weights: dict[bool, nn.Parameter] = {}
    for place in group:
        module = place.module
        transposed = module.fan_in_fan_out
        if transposed not in weights:
            dense = module.dequantize(dtype)
            dense = dense.t().contiguous() if transposed else dense
            kept = not isinstance(module.weight, QuantizedTensor)  # of Linear8bit with has_fp16_weights
            same = kept and dense.dtype == module.weight.dtype
            trained = kept and module.weight.requires_grad
            weights[transposed] = module.weight if same else nn.Parameter(dense, requires_grad=trained)
        if id(module) not in modules:
            modules[id(module)] = _move_hooks(module, _dequantized(module, weights[transposed]))
            _cast_bias(modules[id(module)], dtype, biases)
        place.replace(modules[id(module)])


def _dequantized(module: Any, weight: nn.Parameter) -> nn.Module:
    rows, cols = module.weight.shape
    if isinstance(module, QuantizedEmbedding):
        dense: Any = nn.Embedding(rows, cols, module.padding_idx, device="meta")
    elif module.fan_in_fan_out:
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            dense = Conv1D(rows, cols)
        dense.bias = module.bias
    else:
        dense = nn.Linear(cols, rows, bias=False, device="meta")
        dense.bias = module.bias
    dense.weight = weight
    return dense.train(module.training)


def _cast_bias(
    module: nn.Module, dtype: torch.dtype | None, biases: dict[nn.Parameter, nn.Parameter]
) -> None:
    """Gives `module` its bias in `dtype`; `biases` are those made so far, so that a shared one stays so."""
    bias = module._parameters.get("bias")
    if bias is None or dtype is None or bias.dtype == dtype:
        return
    if bias not in biases:
        biases[bias] = nn.Parameter(bias.detach().to(dtype), requires_grad=bias.requires_grad)
    module.bias = biases[bias]
