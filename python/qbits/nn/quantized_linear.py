"""What linear layers with a quantized weight share: how they are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from qbits.config import QuantizeConfig, config_of
from qbits.nn.quantized_module import QuantizedModule, quantized_parameter

if TYPE_CHECKING:
    from typing_extensions import Self


class QuantizedLinear(QuantizedModule, nn.Linear):
    """nn.Linear whose `weight` is a QuantizedTensor [out_features, in_features].

    Args:
        in_features, out_features, bias, device, dtype: as for nn.Linear; the weight is initialised like
            its, then quantized.
        config: a format, or a QuantizeConfig with block size and the rest, whose fields may also be keyword
            arguments, alone or beside a format.

    Raises:
        ValueError, TypeError: as QuantizeConfig.
    """

    BITS: ClassVar[int]

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
        self.config = config_of(type(self).__name__, self.BITS, config, options)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.weight = quantized_parameter(self.weight.detach(), self.config, None)

    @classmethod
    def from_float(
        cls,
        linear: nn.Module,
        config: str | QuantizeConfig | None = None,
        name: str = "weight",
        **options: Any,
    ) -> Self:
        """The quantized `linear`: an nn.Linear or transformers' Conv1D. Shares its bias.

        `config` and `options` as for the constructor; `name` is what a NaN or infinity in the weight is
        reported under.

        Raises:
            ValueError: a NaN or infinity, with its first index; or as QuantizeConfig.
            TypeError: another kind of module, or a dtype that cannot be quantized; or as QuantizeConfig.
        """
        op = f"{cls.__name__}.from_float"
        transposed = check_linear(op, linear)
        dense: Tensor = linear.weight.detach()  # type: ignore[operator]
        config = config_of(op, cls.BITS, config, options)
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
    ) -> Self:
        """A layer that holds `weight`, a QuantizedTensor [N, K], and `bias` themselves."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.config, layer.fan_in_fan_out = config, fan_in_fan_out
        layer.out_features, layer.in_features = weight.shape
        layer.weight = weight
        layer.register_parameter("bias", bias)
        return layer.train(training)


def check_linear(op: str, linear: Any) -> bool:
    """Whether `linear` is a Conv1D. Raises TypeError if it is no linear layer with a float weight either."""
    transposed = is_conv1d(linear)
    if not (transposed or isinstance(linear, nn.Linear)) or isinstance(linear, QuantizedModule):
        raise TypeError(f"[{op}] module: got {type(linear).__name__}, want nn.Linear or Conv1D")
    return transposed


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is transformers' Conv1D (GPT-2): a linear layer with its weight transposed."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
