"""A linear layer whose weight is stored in 4 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qbits.functional.linear import (
    autocast_dtype,
    linear_4bit,
    linear_4bit_direct,
    linear_4bit_dispatched,
    refuse_input,
)
from qbits.nn.quantized_linear import QuantizedLinear
from qbits.tensor import QuantizedTensor

_is_autocast = torch._C._is_any_autocast_enabled


class Linear4bit(QuantizedLinear):
    """nn.Linear with a frozen 4-bit weight; gradients reach x and the bias.

    `weight` is a QuantizedTensor [out_features, in_features] with the shape and dtype of the dense one.
    A dense state dict loaded into the layer is quantized; its own state dict has bitsandbytes' keys.

    Args:
        in_features, out_features, bias, device, dtype: as for nn.Linear; the weight is initialised like
            its, then quantized.
        config: a 4-bit format, nf4 by default, or a QuantizeConfig with block size and the rest, whose fields
            may also be keyword arguments, alone or beside a format (`config="fp4", block_size=128`).

    Raises:
        ValueError, TypeError: as QuantizeConfig.
    """

    BITS = 4

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + bias, computed in `compute_dtype` (by default x's own) and returned in x's dtype.

        Under autocast, computed and returned in its dtype.
        """
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
            out = linear_4bit_direct(x, weight, bias)
            if out is not None:
                return out
            if bias is not None and bias.dtype != x.dtype:
                return linear_4bit(x, weight, bias.to(x.dtype))
            return linear_4bit_dispatched(x, weight, bias)
        bias = None if bias is None else bias.to(dtype)
        return linear_4bit(x.to(dtype), weight, bias).to(x.dtype)
