"""A linear layer whose weight is stored in 4 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qbits.config import QuantizeConfig, as_config
from qbits.functional.linear import autocast_dtype, linear_4bit, refuse_input
from qbits.nn.quantized_module import QuantizedModule, quantized_parameter
from qbits.tensor import QuantizedTensor

_is_autocast = torch._C._is_any_autocast_enabled


class Linear4bit(QuantizedModule, nn.Linear):
    """nn.Linear with a frozen 4-bit weight; gradients reach x and the bias.

    `weight` is a QuantizedTensor [out_features, in_features] with the shape and dtype of the dense one.
    A dense state dict loaded into the layer is quantized; its own state dict has bitsandbytes' keys.

    Args:
        in_features, out_features, bias, device, dtype: as for nn.Linear; the weight is initialised like
            its, then quantized.
        config: a format, or a QuantizeConfig with block size and the rest, whose fields are also taken as
            keyword arguments.

    Raises:
        ValueError, TypeError: as QuantizeConfig.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        config: str | QuantizeConfig | None = None,
        **options: object,
    ) -> None:
        if options and config is not None:
            raise TypeError(
                f"[Linear4bit] options: got {sorted(options)} beside config, want one or the other"
            )
        self.config = QuantizeConfig(**options) if options else as_config("Linear4bit", config)  # type: ignore[arg-type]
        super().__init__(in_features, out_features, bias, device, dtype)
        self.weight = quantized_parameter(self.weight.detach(), self.config, None)

    @classmethod
    def from_float(
        cls, linear: nn.Module, config: str | QuantizeConfig | None = None, name: str = "weight"
    ) -> Linear4bit:
        """The quantized `linear`: an nn.Linear or transformers' Conv1D. Shares its bias.

        `name` is what a NaN or infinity in the weight is reported under.

        Raises:
            ValueError: a NaN or infinity, with its first index.
            TypeError: another kind of module, or a dtype that cannot be quantized.
        """
        transposed = is_conv1d(linear)
        if not (transposed or isinstance(linear, nn.Linear)) or isinstance(linear, QuantizedModule):
            raise TypeError(
                f"[Linear4bit.from_float] module: got {type(linear).__name__}, want nn.Linear or Conv1D"
            )
        dense: Tensor = linear.weight.detach()  # type: ignore[operator]
        config = as_config("Linear4bit.from_float", config)
        parameter = quantized_parameter(dense.t().contiguous() if transposed else dense, config, name)
        return cls.from_parameter(parameter, linear.bias, config, transposed, linear.training)  # type: ignore[arg-type]

    @classmethod
    def from_parameter(
        cls,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        config: QuantizeConfig,
        fan_in_fan_out: bool = False,
        training: bool = True,
    ) -> Linear4bit:
        """A layer that holds `weight`, a QuantizedTensor [N, K], and `bias` themselves."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.config, layer.fan_in_fan_out = config, fan_in_fan_out
        layer.out_features, layer.in_features = weight.shape
        layer.weight = weight
        layer.register_parameter("bias", bias)
        return layer.train(training)

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + bias, computed in `compute_dtype` (by default x's own) and returned in x's dtype."""
        if not isinstance(x, Tensor):
            refuse_input("linear_4bit", "x", x)
        # nn.Module's __getattr__, which also looks here, takes most of a microsecond. (A parametrized weight
        # is elsewhere.)
        parameters: Any = self._parameters
        try:
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:
            weight, bias = self.weight, self.bias
        dtype = self.config.compute_dtype
        if type(weight) is not QuantizedTensor or (_is_autocast() and autocast_dtype(x) is not None):
            return nn.functional.linear(x, weight, bias)
        if dtype is None or dtype == x.dtype:
            if bias is not None and bias.dtype != x.dtype:
                bias = bias.to(x.dtype)
            return linear_4bit(x, weight, bias)
        bias = None if bias is None else bias.to(dtype)
        return linear_4bit(x.to(dtype), weight, bias).to(x.dtype)


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is transformers' Conv1D (GPT-2): a linear layer with its weight transposed."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
