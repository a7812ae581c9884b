"""What modules with a quantized `weight` share: moving, saving and loading it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qbits.codec import FLOATS, dtype_name
from qbits.config import QuantizeConfig
from qbits.formats import FORMATS
from qbits.state_dict import entries_of, is_quantized, key_of, weight_entries, weight_from_entries
from qbits.tensor import QuantizedTensor, quantize


def quantized_parameter(dense: Tensor, config: QuantizeConfig, name: str | None) -> nn.Parameter:
    """A frozen parameter that holds `dense` quantized. Raises ValueError, naming `name`, for a NaN."""
    weight = quantize(
        dense,
        config.format,
        block_size=config.block_size,
        double_quant=config.double_quant,
        scale_dtype=config.scale_dtype,
        name=name,
    )
    return nn.Parameter(weight, requires_grad=False)


def loaded_weight(
    weight: QuantizedTensor,
    entries: Mapping[str, Tensor],
    config: QuantizeConfig,
    name: str,
    assign: bool,
    transposed: bool = False,
) -> QuantizedTensor:
    """What `weight` becomes when load_state_dict finds `entries`, which are quantized or dense.

    Raises ValueError or TypeError, which load_state_dict collects.
    """
    device = None if assign or weight.codes.is_meta else weight.codes.device
    if is_quantized(entries):
        # Kernels read no gaps, which a view in the checkpoint may have.
        loaded = weight_from_entries(entries, device, weight.logical_dtype).map(Tensor.contiguous)
    else:
        dense = entries.get("")
        if not isinstance(dense, Tensor):
            raise TypeError(f"[load_state_dict] weight: got {type(dense).__name__}, want a tensor")
        dense = dense.t().contiguous() if transposed else dense
        if dense.shape != weight.shape:
            want = list(weight.shape)
            raise ValueError(f"[load_state_dict] shape: got {list(dense.shape)}, want {want}")
        if dense.dtype not in FLOATS:
            dense = dense.to(torch.float32)
        dense = dense if device is None else dense.to(device)
        loaded = quantized_parameter(dense, config, name).data  # type: ignore[assignment]
    if loaded.format != weight.format:
        raise ValueError(f"[load_state_dict] format: got {loaded.format}, want {weight.format}")
    if loaded.shape != weight.shape:
        want = list(weight.shape)
        raise ValueError(f"[load_state_dict] shape: got {list(loaded.shape)}, want {want}")
    if not assign:
        # The copy load_state_dict promises; it also ends sharing with the checkpoint's memory.
        loaded = loaded.map(torch.clone).like(dtype=weight.logical_dtype)
    return loaded


class QuantizedModule(nn.Module):
    """Mixin for a module whose parameter `weight` is a QuantizedTensor, made as `config` says."""

    config: QuantizeConfig
    # Whether the dense weight of checkpoints is the transpose of this one (transformers' Conv1D).
    fan_in_fan_out: bool = False
    weight: Tensor

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """The dtype of the computation; None means that of the input (of the weight, for an embedding)."""
        return self.config.compute_dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedModule:
        weight = self._parameters.get("weight")
        if not isinstance(weight, QuantizedTensor):
            return super()._apply(fn, recurse)
        with torch.no_grad():  # first, since it may refuse
            moved = _moved(weight, fn(weight))
        # torch would swap the wrapper, which fails once it has been compiled, or leave its tensors behind.
        self._parameters["weight"] = None
        try:
            super()._apply(fn, recurse)
        finally:
            self._parameters["weight"] = weight
        with torch.no_grad():
            try:
                weight.data = moved
            except RuntimeError:  # something in C++ holds the wrapper
                self._parameters["weight"] = nn.Parameter(moved, requires_grad=weight.requires_grad)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # On the meta device the entry stays the weight itself: there are no bytes to lay out.
        if isinstance(self.weight, QuantizedTensor) and not self.weight.is_meta:
            for key, value in weight_entries(self.weight).items():
                destination[key_of(f"{prefix}weight", key)] = value

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        name = f"{prefix}weight"
        entries = entries_of(state_dict, name)
        if not entries or not isinstance(self.weight, QuantizedTensor):
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
            return
        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        try:
            with torch.no_grad():
                loaded = loaded_weight(self.weight, entries, self.config, name, assign, self.fan_in_fan_out)
                self.weight.data = loaded
        except (ValueError, TypeError) as error:
            error_msgs.append(f"{name}: {error}")
        taken = {key_of(name, suffix) for suffix in entries}
        rest = {key: value for key, value in state_dict.items() if key not in taken}
        missing: list[str] = []
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        missing_keys += [key for key in missing if key != name]

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense weight, in `dtype` or its own."""
        weight = self.weight
        if isinstance(weight, QuantizedTensor):
            return weight.dequantize(dtype)
        return weight.detach() if dtype is None else weight.detach().to(dtype)

    def extra_repr(self) -> str:
        """Sizes and format, for printing the module."""
        weight = self.weight
        if not isinstance(weight, QuantizedTensor):
            return super().extra_repr()
        double = ", double_quant=True" if weight.double_quant else ""
        block = f", block_size={weight.block_size}" if FORMATS[weight.format].block_sizes else ""
        return f"{super().extra_repr()}, format={weight.format}{block}{double}"


def _moved(weight: QuantizedTensor, result: Tensor) -> QuantizedTensor:
    """`result` of a function nn.Module applies to each parameter, as a quantized tensor."""
    if isinstance(result, QuantizedTensor):
        return result
    if result.dtype not in FLOATS:
        want = ", ".join(map(dtype_name, FLOATS))
        raise TypeError(
            f"[Module.to] dtype of a quantized weight: got {dtype_name(result.dtype)}, want {want}"
        )
    if result.device == weight.codes.device and not result.is_meta:
        return weight.like(weight.encode(result), dtype=result.dtype)
    # torch.empty_like(weight, device=...), as in to_empty()
    return weight.map(lambda t: torch.empty_like(t, device=result.device))
