"""How a model or layer is to be quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import torch

from qbits.codec import FLOATS, check_format, check_options
from qbits.formats import FORMATS
from qbits.ops._library import check_threshold, is_weight_only

DEFAULT_THRESHOLD = 6.0
"""Of LLM.int8(): the outlier threshold its paper and Hugging Face's llm_int8_threshold have."""


@dataclass(frozen=True)
class QuantizeConfig:
    """Options of `qbits.quantize_` and of the `from_float` constructors; checked when made.

    Attributes:
        format: a 4-bit format of the table, "nf4", "fp4" or "int4", or "int8": LLM.int8().
        block_size: elements that share a scale: 16 to 4096, 64 by default; "int4" takes 0 for whole rows,
            "int8" has nothing else.
        double_quant: codebook formats: quantize the scales too, to 8 bits in blocks of 256.
        scale_dtype: "int4": dtype of scales and zeros; float32 by default.
        compute_dtype: dtype x is cast to before a product; its own by default.
        embeddings: quantize nn.Embedding too.
        experts: quantize the weights of mixtures of experts: the 3-D parameters of modules whose class is
            named "...Experts...", as transformers' are. The default for 4 bits; "int8" has no products for
            them and leaves them dense.
        threshold: "int8": magnitude from which on an element of x makes its column an outlier, which is
            multiplied in x's own dtype; 0 for none, 6 by default.
        activation_bits: "int8": 8, the default, quantizes x in a product. 16 takes it as it is, in its own
            dtype; then the threshold is 0.
    """

    format: str = "nf4"
    block_size: int | None = None  # None until __post_init__, as for the other two
    double_quant: bool = False
    scale_dtype: torch.dtype | None = None
    compute_dtype: torch.dtype | None = None
    embeddings: bool = False
    experts: bool | None = None
    threshold: float | None = None
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        row = check_format("QuantizeConfig", self.format, in_layers=True)
        if self.experts is None:
            object.__setattr__(self, "experts", row.bits == 4)
        for name in ("embeddings", "experts"):
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(f"[QuantizeConfig] {name}: got {value!r}, want True or False")
        if self.experts and row.bits != 4:
            raise ValueError(
                f"[QuantizeConfig] experts: got True, want False or a 4-bit format, not {row.name}"
            )
        size, _ = check_options("QuantizeConfig", row, self.block_size, self.double_quant, self.scale_dtype)
        object.__setattr__(self, "block_size", size)
        self._complete_product(row.coding == "symmetric")
        if self.compute_dtype is not None and self.compute_dtype not in FLOATS:
            want = f"{', '.join(map(str, FLOATS))} or None"
            raise TypeError(f"[QuantizeConfig] compute_dtype: got {self.compute_dtype!r}, want {want}")

    @property
    def quant_method(self) -> str:
        """What Transformers asks a `quantization_config` for: an AttributeError that names `QbitsConfig`."""
        raise AttributeError(
            "[QuantizeConfig] quantization_config: got a QuantizeConfig, want a qbits.QbitsConfig, which"
            " takes the same options but embeddings"
        )

    def _complete_product(self, has_int8: bool) -> None:
        """Fills in and checks what says how int8 multiplies."""
        if not has_int8:
            for name, what in (("threshold", "outliers"), ("activation_bits", "products in 8 bits")):
                if (value := getattr(self, name)) is not None:
                    want = f"None: {self.format} has no {what}, only int8 has"
                    raise ValueError(f"[QuantizeConfig] {name}: got {value!r}, want {want}")
            return
        bits = 8 if self.activation_bits is None else self.activation_bits
        threshold = self.threshold
        if threshold is None:
            threshold = 0.0 if bits == 16 else DEFAULT_THRESHOLD
        if isinstance(threshold, bool) or not isinstance(threshold, Real):
            raise TypeError(f"[QuantizeConfig] threshold: got {threshold!r}, want a number")
        check_threshold("QuantizeConfig", threshold)
        is_weight_only("QuantizeConfig", bits, threshold)
        object.__setattr__(self, "activation_bits", bits)
        object.__setattr__(self, "threshold", float(threshold))


def as_config(
    op: str, config: str | QuantizeConfig | None, options: Mapping[str, Any] | None = None
) -> QuantizeConfig:
    """`config` itself, or that of the format it names, by default nf4, with `options`.

    Raises TypeError for another type of config, an unknown option, or options beside a QuantizeConfig.
    """
    options = options or {}
    names = [field.name for field in fields(QuantizeConfig)]
    if unknown := sorted({*options} - {*names}):
        raise TypeError(f"[{op}] options: got {unknown}, want some of QuantizeConfig's: {', '.join(names)}")
    if config is None:
        return QuantizeConfig(**options)
    if not isinstance(config, (str, QuantizeConfig)):
        raise TypeError(f"[{op}] config: got {type(config).__name__}, want a format or a QuantizeConfig")
    if isinstance(config, str):
        if "format" in options:
            raise TypeError(f"[{op}] format: got {options['format']!r} beside {config!r}, want one of them")
        return QuantizeConfig(config, **options)
    if options:
        name, value = next(iter(options.items()))
        raise TypeError(f"[{op}] {name}: got {value!r} beside {config!r}, want it in the QuantizeConfig")
    return config


def config_of(
    op: str, bits: int, config: str | QuantizeConfig | None, options: Mapping[str, Any] | None = None
) -> QuantizeConfig:
    """The config of a layer whose formats have `bits` a code, from what its constructor was given.

    Raises as as_config, and ValueError for a format of other bits.
    """
    if config is None and bits == 8:
        options = {"format": "int8", "threshold": 0.0, **(options or {})}
    config = as_config(op, config, options)
    if FORMATS[config.format].bits != bits:
        known = ", ".join(name for name, row in FORMATS.items() if row.in_layers and row.bits == bits)
        raise ValueError(f"[{op}] format: got {config.format!r}, want one of {known}")
    return config
