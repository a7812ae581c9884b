"""The transformers plug-in: `from_pretrained(..., quantization_config=QbitsConfig("nf4"))`, save, reload.

Checkpoints hold each weight under the keys the layers of `qbits.nn` write: for nf4, fp4 and int8 those of
bitsandbytes, for int4 its own. Works with transformers 5.17 and later; what differs between versions is noted
where it does.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from qbits.config import QuantizeConfig
from qbits.formats import FORMATS
from qbits.nn.quantized_experts import expert_weights, keep_in_state_dicts, quantized_expert_weights
from qbits.nn.quantized_linear import QuantizedLinear
from qbits.nn.quantized_module import quantized_parameter
from qbits.quantize_model import dequantize_, linear_class, warn_of_no_module
from qbits.state_dict import WEIGHT_KEYS, WEIGHT_SUFFIXES, weight_from_entries


def _dtype(value: str | torch.dtype | None) -> torch.dtype | None:
    if not isinstance(value, str):
        return value
    dtype: Any = getattr(torch, value.removeprefix("torch."), value)  # another name is left to QuantizeConfig
    return dtype


def _dtype_name(value: torch.dtype | None) -> str | None:
    return None if value is None else str(value).removeprefix("torch.")


@register_quantization_config("qbits")
class QbitsConfig(QuantizationConfigMixin):
    """How `from_pretrained` quantizes a model's linear layers and the weights of its experts.

    Args:
        format: a 4-bit format of the table, "nf4", "fp4", "int4", or "int8": LLM.int8().
        block_size: elements that share a scale; 64 by default, 0, whole rows, for int8.
        double_quant: quantize the scales of nf4 and fp4 too.
        scale_dtype: dtype of int4's scales and zeros, as a torch dtype or its name.
        compute_dtype: the dtype activations are cast to; None: their own.
        skip: modules to leave dense, by name, prefix or suffix; None: output embeddings and what is tied
            to them. Listing any replaces that default.
        experts: quantize the weights of mixtures of experts; the default in 4 bits. int8 leaves them dense.
        threshold: int8: magnitude from which on an element of x is an outlier; 6 by default, 0 for none.
        activation_bits: int8: 8, the default, quantizes x; 16 takes it as it is, and the threshold is 0.
    """

    def __init__(
        self,
        format: str = "nf4",
        block_size: int | None = None,
        double_quant: bool = False,
        scale_dtype: str | torch.dtype | None = None,
        compute_dtype: str | torch.dtype | None = None,
        skip: list[str] | None = None,
        experts: bool | None = None,
        threshold: float | None = None,
        activation_bits: int | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("quant_method", None)
        if kwargs:
            raise TypeError(
                f"[QbitsConfig] arguments: got {', '.join(sorted(kwargs))}, want none but the documented"
            )
        self.quant_method = "qbits"
        self.format = format
        self.block_size = block_size
        self.double_quant = double_quant
        # Names, not torch dtypes: this object becomes part of config.json.
        self.scale_dtype = _dtype_name(_dtype(scale_dtype))
        self.compute_dtype = _dtype_name(_dtype(compute_dtype))
        self.skip = skip
        self.experts = experts
        self.threshold = threshold
        self.activation_bits = activation_bits
        options = self.options()  # refuses what the format table does not have
        for name in ("block_size", "experts", "threshold", "activation_bits"):
            setattr(self, name, getattr(options, name))

    def options(self) -> QuantizeConfig:
        """The same choice as `qbits.quantize_` takes it."""
        return QuantizeConfig(
            format=self.format,
            block_size=self.block_size,
            double_quant=self.double_quant,
            scale_dtype=_dtype(self.scale_dtype),
            compute_dtype=_dtype(self.compute_dtype),
            experts=self.experts,
            threshold=self.threshold,
            activation_bits=self.activation_bits,
        )


class _Quantize(ConversionOps):
    """A dense weight of the checkpoint to a quantized parameter."""

    def __init__(self, hf_quantizer: QbitsHfQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(
        self, input_dict: dict[str, Any], *args: Any, model: nn.Module | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for name, value in input_dict.items():
            dense = value[0] if isinstance(value, list) else value
            if name.rpartition(".")[0] in self.hf_quantizer.transposed:
                dense = dense.t().contiguous()
            result[name] = quantized_parameter(dense, self.hf_quantizer.quantization_config.options(), name)
            module, _ = get_module_from_name(model, name)
            module._is_hf_initialized = True
        return result


class _Deserialize(ConversionOps):
    """The tensors of one quantized weight to a parameter."""

    def __init__(self, hf_quantizer: QbitsHfQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        *args: Any,
        model: nn.Module | None = None,
        full_layer_name: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        module, _ = get_module_from_name(model, full_layer_name)
        if len(input_dict) == 1 and not isinstance(module, QuantizedLinear):
            return input_dict  # the patterns also match weights that are not quantized
        entries = {
            WEIGHT_KEYS[key]: value[0] if isinstance(value, list) else value
            for key, value in input_dict.items()
        }
        weight = weight_from_entries(entries)
        want = (module.out_features, module.in_features)
        if tuple(weight.shape) != want or weight.format != module.config.format:
            got = f"{weight.format} {list(weight.shape)}"
            raise ValueError(
                f"[from_pretrained] {full_layer_name}: got {got}, want {module.config.format} {list(want)}"
            )
        # The model's dtype, as for every other parameter; the stored scales keep theirs.
        weight = weight.like(dtype=module.weight.dtype)
        module._is_hf_initialized = True
        return {"weight": nn.Parameter(weight, requires_grad=False)}


class _DeserializeExperts(ConversionOps):
    """The same for the weights of experts, which are parameters of their own."""

    def __init__(self, hf_quantizer: QbitsHfQuantizer, name: str, suffixes: list[str]) -> None:
        self.hf_quantizer = hf_quantizer
        self.name = name
        # Regular expressions, which must not find ".experts.up" in "shared_experts.up" or ".experts.up_bias".
        self.patterns = {re.escape(name + suffix) + "$": suffix for suffix in suffixes}

    def convert(
        self,
        input_dict: dict[str, Any],
        *args: Any,
        model: nn.Module | None = None,
        full_layer_name: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        if len(input_dict) == 1:
            return {self.name: next(iter(input_dict.values()))}
        module, name = get_module_from_name(model, full_layer_name)
        entries = {
            self.patterns[key].removeprefix("."): value[0] if isinstance(value, list) else value
            for key, value in input_dict.items()
        }
        weight, dense = weight_from_entries(entries), getattr(module, name)
        if weight.shape != dense.shape:
            got, want = list(weight.shape), list(dense.shape)
            raise ValueError(f"[from_pretrained] {full_layer_name}: got shape {got}, want {want}")
        module._is_hf_initialized = True
        return {self.name: nn.Parameter(weight.like(dtype=dense.dtype), requires_grad=False)}


@register_quantizer("qbits")
class QbitsHfQuantizer(HfQuantizer):
    """Swaps linear layers for quantized ones while a model is built, and fills them while it loads."""

    requires_calibration = False
    quantization_config: QbitsConfig
    # 5.23 builds its converters from these two; 5.17 calls get_weight_conversions below.
    serialized_names: ClassVar[dict[str, list[str]]] = {"weight": list(WEIGHT_KEYS)}

    def __init__(self, quantization_config: QbitsConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.transposed: set[str] = set()
        self.experts: set[str] = set()  # full names of their weights

    def get_load_operations(self) -> dict[str, type[ConversionOps]]:
        return {"deserialize": _Deserialize}

    def get_weight_conversions(self) -> list[WeightConverter]:
        if not self.pre_quantized:
            return []
        # 5.17 takes the first pattern that matches anywhere in a name: the bare "weight" comes last.
        names = sorted(self.serialized_names["weight"], key=len, reverse=True)
        converters = [WeightConverter(names, "weight", [_Deserialize(self)])]
        suffixes = [*(f".{suffix}" for suffix in sorted(WEIGHT_SUFFIXES, key=len, reverse=True)), ""]
        for name in sorted({"." + ".".join(name.split(".")[-2:]) for name in self.experts}):
            operation = _DeserializeExperts(self, name, suffixes)
            converters.insert(0, WeightConverter(list(operation.patterns), name, [operation]))
        return converters

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize(self)

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        if not self.pre_quantized and isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError(
                "[QbitsConfig] device_map: got modules on disk while quantizing, want them on a device or "
                "the CPU; quantize and save first, then load with offload"
            )

    def update_device_map(self, device_map: Any) -> Any:
        if device_map is not None:
            return device_map
        return {"": torch.cuda.current_device()} if torch.cuda.is_available() else {"": "cpu"}

    @property
    def quantized_element_size(self) -> float:
        """Bytes per weight with its scales."""
        config = self.quantization_config
        row = FORMATS[config.format]
        scale = {None: 4, "float32": 4, "bfloat16": 2, "float16": 2}[config.scale_dtype]
        if row.coding == "affine":
            scale *= 2
        elif config.double_quant:
            scale = 1
        return row.bits / 8 + (scale / config.block_size if config.block_size else 0.0)

    def param_element_size(self, model: Any, param_name: str, param: Tensor) -> float:
        return (
            self.quantized_element_size
            if self.param_needs_quantization(model, param_name)
            else param.element_size()
        )

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        module, name = get_module_from_name(model, param_name)
        return (isinstance(module, QuantizedLinear) and name == "weight") or param_name in self.experts

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config = self.quantization_config
        options = config.options()
        skip = self.get_modules_to_not_convert(model, config.skip, model._keep_in_fp32_modules)
        if not self.pre_quantized:
            warn_of_no_module(
                "QbitsConfig", model, config.skip or (), lambda *of: not should_convert_module(*of)
            )
        for name, module in list(model.named_modules()):
            if config.experts and should_convert_module(name, skip):
                self.experts.update(f"{name}.{weight}" for weight, _ in expert_weights(module))
            if type(module) not in (nn.Linear, Conv1D) or not should_convert_module(name, skip):
                continue
            if isinstance(module, Conv1D):
                self.transposed.add(name)
                in_features, out_features = module.weight.shape
            else:
                in_features, out_features = module.in_features, module.out_features
            bias, dtype = module.bias is not None, module.weight.dtype
            layer = linear_class(options)
            replacement = layer(in_features, out_features, bias, "meta", dtype, options)
            replacement.fan_in_fan_out = name in self.transposed
            replacement.requires_grad_(False)
            # Keeps transformers from drawing random values into what a checkpoint brings.
            replacement._is_hf_initialized = self.pre_quantized
            model.set_submodule(name, replacement)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        # save_pretrained would reverse these converters; state_dict() writes the serialized keys by itself.
        conversions = getattr(model, "_weight_conversions", None) or []
        model._weight_conversions = [conversion for conversion in conversions if not self._made(conversion)]
        for module in model.modules():
            if any(True for _ in quantized_expert_weights(module)):
                keep_in_state_dicts(module)
        return model

    def _made(self, converter: Any) -> bool:
        return any(getattr(op, "hf_quantizer", None) is self for op in getattr(converter, "operations", ()))

    def _dequantize(self, model: Any, dtype: str | torch.dtype | None = None) -> Any:
        dequantize_(model, dtype=_dtype(dtype))  # save_pretrained turns config.dtype into a string
        return model

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True
