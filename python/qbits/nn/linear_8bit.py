"""LLM.int8(): a linear layer with rows of 8 bits, multiplied with x in 8 bits but for x's outlier columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qbits.codec import FLOATS, dtype_name
from qbits.config import QuantizeConfig, config_of
from qbits.functional.int8_weight import product_with_int8
from qbits.functional.linear import autocast_dtype, refuse_input
from qbits.functional.linear_int8_from_float import linear_int8_from_float
from qbits.nn.quantized_linear import QuantizedLinear, check_linear
from qbits.state_dict import entries_of, is_quantized
from qbits.tensor import QuantizedTensor

if TYPE_CHECKING:
    from typing_extensions import Self

_is_autocast = torch._C._is_any_autocast_enabled


class Linear8bit(QuantizedLinear):
    """nn.Linear with an 8-bit weight, whose product quantizes the rows of x too (arXiv 2208.07339).

    `weight` is a QuantizedTensor [out_features, in_features] with the shape and dtype of the dense one,
    frozen; gradients reach x and the bias. Its state dict has the keys of bitsandbytes' Linear8bitLt, and a
    dense one loaded into the layer is quantized.

    With `has_fp16_weights`, `weight` is an ordinary trainable parameter, float32, bfloat16 or float16, which
    every call quantizes, and the state dict is that of nn.Linear.

    Args:
        in_features, out_features, bias, device, dtype: as for nn.Linear; the weight is initialised like
            its, then quantized.
        config: "int8", or a QuantizeConfig of it, whose fields may also be keyword arguments, alone or beside
            "int8".
        threshold: magnitude from which on an element of x makes its column an outlier. Without a config 0,
            for none, as in bitsandbytes' layer; that of a config, and so of `quantize_`, is 6 by default.
        activation_bits: 16 takes x as it is, also with `has_fp16_weights`; by default 8.
        has_fp16_weights: keep the weight as it is and train it.

    Raises:
        ValueError, TypeError: as QuantizeConfig.
    """

    BITS = 8
    has_fp16_weights: bool = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: str | QuantizeConfig | None = None,
        *,
        has_fp16_weights: bool = False,
        **options: object,
    ) -> None:
        if not has_fp16_weights:
            super().__init__(in_features, out_features, bias, device, dtype, config, **options)
            return
        self.config = config_of(type(self).__name__, self.BITS, config, options)
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self.has_fp16_weights = True
        _check_dtype(type(self).__name__, self.weight)

    @classmethod
    def from_float(
        cls,
        linear: nn.Module,
        config: str | QuantizeConfig | None = None,
        name: str = "weight",
        has_fp16_weights: bool = False,
        **options: Any,
    ) -> Self:
        """As that of Linear4bit. With `has_fp16_weights` the layer shares the weight of `linear`, too.

        Raises:
            ValueError: a NaN or infinity, with its first index, unless the weight stays as it is; or as
                QuantizeConfig.
            TypeError: another kind of module, or a dtype that cannot be quantized; or as QuantizeConfig.
        """
        if not has_fp16_weights:
            return super().from_float(linear, config, name, **options)
        op = f"{cls.__name__}.from_float"
        if check_linear(op, linear):
            raise TypeError(f"[{op}] module: got Conv1D, want nn.Linear where the weight stays as it is")
        weight: nn.Parameter = linear.weight  # type: ignore[assignment]
        _check_dtype(op, weight)
        config = config_of(op, cls.BITS, config, options)
        layer = cls.from_parameter(weight, linear.bias, config, training=linear.training)  # type: ignore[arg-type]
        layer.has_fp16_weights = True
        return layer

    @property
    def threshold(self) -> float:
        """From where on an element of x is an outlier; 0 for no outliers."""
        return self.config.threshold  # type: ignore[return-value]

    @property
    def activation_bits(self) -> int:
        """8 where x is quantized, 16 where it is multiplied as it is."""
        return self.config.activation_bits  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + bias, computed in `compute_dtype` (by default x's own) and returned in x's dtype.

        Under autocast, computed and returned in its dtype.
        """
        if not isinstance(x, Tensor):
            refuse_input("linear_int8", "x", x)
        parameters: Any = self._parameters  # as in Linear4bit
        try:
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:
            weight, bias = self.weight, self.bias
        config = self.config
        dtype = config.compute_dtype
        if _is_autocast() and (wanted := autocast_dtype(x)) is not None:
            dtype, x = wanted, x.to(wanted)
        out_dtype = x.dtype
        if dtype is not None and dtype != out_dtype:
            x = x.to(dtype)
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        threshold: Any = config.threshold
        bits: Any = config.activation_bits
        if type(weight) is QuantizedTensor and weight.is_int8_matrix:
            y = product_with_int8(x, weight, bias, threshold, bits)
        elif self.has_fp16_weights:
            y = linear_int8_from_float(x, weight, bias, threshold, bits)
        else:
            y = nn.functional.linear(x, weight, bias)
        return y if y.dtype == out_dtype else y.to(out_dtype)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        entries = entries_of(state_dict, f"{prefix}weight")
        if self.has_fp16_weights and entries and is_quantized(entries):
            # torch would copy the codes into the weight as if they were its values.
            want = "a dense weight, as has_fp16_weights keeps it"
            args[-1].append(f"{prefix}weight: [load_state_dict] weight: got a quantized one, want {want}")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Sizes, format and options of the product, for printing the module."""
        kept = ", has_fp16_weights=True" if self.has_fp16_weights else ""
        product = f"threshold={self.threshold}" if self.activation_bits == 8 else "activation_bits=16"
        return f"{super().extra_repr()}, {product}{kept}"


def _check_dtype(op: str, weight: Tensor) -> None:
    if weight.dtype not in FLOATS:
        want = ", ".join(map(dtype_name, FLOATS))
        raise TypeError(f"[{op}] weight: got {dtype_name(weight.dtype)}, want {want}")
