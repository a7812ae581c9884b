"""How a model or layer is to be quantized."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qbits.codec import FLOATS, check_format, check_options


@dataclass(frozen=True)
class QuantizeConfig:
    """Options of `qbits.quantize_` and of the `from_float` constructors; checked when made.

    Attributes:
        format: a 4-bit format of the table: "nf4", "fp4" or "int4".
        block_size: elements that share a scale: 16 to 4096; "int4" takes 0 for whole rows.
        double_quant: codebook formats: quantize the scales too, to 8 bits in blocks of 256.
        scale_dtype: "int4": dtype of scales and zeros; float32 by default.
        compute_dtype: dtype x is cast to before a product; its own by default.
        embeddings: quantize nn.Embedding too.
        experts: quantize the weights of mixtures of experts: the 3-D parameters of modules whose class is
            named "...Experts...", as transformers' are.
    """

    format: str = "nf4"
    block_size: int = 64
    double_quant: bool = False
    scale_dtype: torch.dtype | None = None
    compute_dtype: torch.dtype | None = None
    embeddings: bool = False
    experts: bool = True

    def __post_init__(self) -> None:
        row = check_format("QuantizeConfig", self.format, bits=4)
        if self.block_size is None:
            raise TypeError("[QuantizeConfig] block size: got None, want an int")
        for name in ("embeddings", "experts"):
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(f"[QuantizeConfig] {name}: got {value!r}, want True or False")
        check_options("QuantizeConfig", row, self.block_size, self.double_quant, self.scale_dtype)
        if self.compute_dtype is not None and self.compute_dtype not in FLOATS:
            want = "float32, bfloat16, float16 or None"
            raise TypeError(f"[QuantizeConfig] compute_dtype: got {self.compute_dtype!r}, want {want}")


def as_config(op: str, config: str | QuantizeConfig | None) -> QuantizeConfig:
    """`config` itself, or the defaults, or those with the format it names. Anything else is a TypeError."""
    if config is None:
        return QuantizeConfig()
    if isinstance(config, str):
        return QuantizeConfig(format=config)
    if not isinstance(config, QuantizeConfig):
        raise TypeError(f"[{op}] config: got {type(config).__name__}, want a format or a QuantizeConfig")
    return config
