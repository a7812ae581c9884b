"""save_pretrained of models with quantized layers: config.json describes them, however they came about.

transformers copies what from_pretrained was told, which says nothing of `qbits.quantize_` and is wrong after
`qbits.dequantize_`. Here the description is made of the layers themselves.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.modeling_utils import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from qbits.config import QuantizeConfig
from qbits.integrations.transformers import QbitsConfig, QbitsHfQuantizer
from qbits.nn.quantized_experts import expert_weights, quantized_expert_weights
from qbits.nn.quantized_linear import QuantizedLinear
from qbits.nn.quantized_module import QuantizedModule
from qbits.tensor import QuantizedTensor

_save_pretrained = PreTrainedModel.save_pretrained


@functools.wraps(_save_pretrained)
def _save_with_description(self: Any, *args: Any, **kwargs: Any) -> Any:
    held = vars(self.config)
    before, told = held.get("quantization_config"), "quantization_config" in held
    quantized = any(isinstance(m, QuantizedModule) or _has_experts(m) for m in self.modules())
    adapters_only = getattr(self, "_hf_peft_config_loaded", False)
    if adapters_only or not (quantized or _is_ours(before)):
        return _save_pretrained(self, *args, **kwargs)
    described = _description(self, before) if quantized else None
    held.pop("quantization_config", None)
    if described is not None:
        held["quantization_config"] = described
    conversions = getattr(self, "_weight_conversions", None)
    self._weight_conversions = _conversions(self, conversions)
    try:
        return _save_pretrained(self, *args, **kwargs)
    finally:
        self._weight_conversions = conversions
        held.pop("quantization_config", None)
        if told:
            held["quantization_config"] = before


def _has_experts(module: nn.Module) -> bool:
    return any(True for _ in quantized_expert_weights(module))


def _conversions(model: Any, conversions: Any) -> Any:
    """What transformers reverses as it saves, but for what would take quantized weights of experts apart."""
    weights = [
        f"{name}.{weight}" for name, m in model.named_modules() for weight, _ in quantized_expert_weights(m)
    ]
    if not weights:
        return conversions
    if conversions is None:  # no model of from_pretrained: those transformers would take
        made = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [conversion for conversion in made if type(conversion).__name__ != "PrefixChange"]
    return [
        conversion
        for conversion in conversions
        if not (
            isinstance(conversion, WeightConverter)
            and any(re.search(f"{target}$", w) for target in conversion.target_patterns for w in weights)
        )
    ]


def _method(config: Any) -> str:
    """The library of a config: "qbits", "bitsandbytes", ..."""
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return str(getattr(method, "value", method))


def _is_ours(config: Any) -> bool:
    return _method(config) == "qbits"


def _description(model: Any, before: Any) -> QbitsConfig:
    """The config with which from_pretrained builds these quantized layers and no others.

    Raises ValueError if there is none: the checkpoint could not be loaded.
    """
    if before is not None and not _is_ours(before):
        got = f"that of {_method(before)}, which did not quantize these layers"
        want = "none: del model.config.quantization_config first"
        raise ValueError(f"[save_pretrained] quantization_config of the model: got {got}, want {want}")
    for config in _candidates(model, before):
        if _describes(config, model):
            return config
    want = (
        "linear layers of one QuantizeConfig, none of which transformers keeps dense, and no quantized "
        "embedding; others can be saved by their state_dict()"
    )
    raise ValueError(f"[save_pretrained] model: got quantized layers no QbitsConfig describes, want {want}")


def _candidates(model: Any, before: Any) -> Iterator[QbitsConfig]:
    if isinstance(before, QbitsConfig):
        yield before
    first = next((module for module in model.modules() if isinstance(module, QuantizedLinear)), None)
    if first is None:
        return
    options = {name: getattr(first.config, name) for name in _OPTIONS}
    options["experts"] = any(_has_experts(module) for module in model.modules())
    yield QbitsConfig(**options)
    # Patterns of transformers: "$" keeps a name from being the start of others.
    yield QbitsConfig(**options, skip=[f"{name}$" for name, m in model.named_modules() if _is_dense(m)])


_OPTIONS = (
    *("format", "block_size", "double_quant", "scale_dtype", "compute_dtype"),
    *("threshold", "activation_bits"),
)


def _is_dense(module: nn.Module) -> bool:
    return type(module) in (nn.Linear, Conv1D)


def _describes(config: QbitsConfig, model: Any) -> bool:
    skip = QbitsHfQuantizer.get_modules_to_not_convert(model, config.skip, model._keep_in_fp32_modules)
    for name, module in model.named_modules():
        if isinstance(module, QuantizedModule):
            if not (should_convert_module(name, skip) and _is_made_by(config.options(), module)):
                return False
        elif _is_dense(module) and should_convert_module(name, skip):
            return False
        made = config.experts and should_convert_module(name, skip)
        if any(True for _ in expert_weights(module)) and made:
            return False
        if not all(
            made and _is_like(config.options(), weight) for _, weight in quantized_expert_weights(module)
        ):
            return False
    return True


def _is_like(options: QuantizeConfig, weight: QuantizedTensor) -> bool:
    scales = weight.scales is None or weight.scales.dtype == (options.scale_dtype or weight.scales.dtype)
    facts = (weight.format, weight.block_size, weight.double_quant)
    return scales and facts == (options.format, options.block_size, options.double_quant)


def _is_made_by(options: QuantizeConfig, module: QuantizedModule) -> bool:
    same = all(getattr(module.config, name) == getattr(options, name) for name in _OPTIONS)
    weight = module.weight
    format = weight.format if isinstance(weight, QuantizedTensor) else None
    return isinstance(module, QuantizedLinear) and same and format == options.format


PreTrainedModel.save_pretrained = _save_with_description
