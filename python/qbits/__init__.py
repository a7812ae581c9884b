"""qbits: large neural networks in little memory. 4-bit and 8-bit weights for PyTorch and C++."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from qbits import _C as _C
from qbits import experts as experts  # registers what torch's grouped products do with one
from qbits import formats, functional, nn, ops, optim
from qbits import tensor_ops as tensor_ops  # registers what torch's functions do with a QuantizedTensor
from qbits.config import QuantizeConfig
from qbits.formats import FORMATS, Format
from qbits.outliers import LayerOutliers, Outliers, outliers
from qbits.plugins import register_on_import
from qbits.quantize_model import dequantize_, quantize_
from qbits.runtime import available_isas, isa, num_threads, set_isa, set_num_threads
from qbits.tensor import QuantizedTensor, quantize

if TYPE_CHECKING:
    from qbits.integrations.transformers import QbitsConfig

__version__ = _C.VERSION

__all__ = [
    "FORMATS",
    "Format",
    "LayerOutliers",
    "Outliers",
    "QbitsConfig",
    "QuantizeConfig",
    "QuantizedTensor",
    "available_isas",
    "dequantize_",
    "formats",
    "functional",
    "isa",
    "nn",
    "num_threads",
    "ops",
    "optim",
    "outliers",
    "quantize",
    "quantize_",
    "set_isa",
    "set_num_threads",
]


def _has_transformers() -> bool:
    try:
        return find_spec("transformers") is not None
    except ValueError:  # a module in its place that nobody found, as tests make them
        return True


if not _has_transformers():
    __all__.remove("QbitsConfig")

set_num_threads(torch.get_num_threads())
register_on_import()


def __getattr__(name: str) -> Any:
    if name == "QbitsConfig":  # needs transformers, which takes seconds to import
        if not _has_transformers():
            raise ImportError("[qbits] QbitsConfig: got no transformers, want it: pip install 'qbits[hf]'")
        from qbits.integrations.transformers import QbitsConfig

        return QbitsConfig
    raise AttributeError(f"module 'qbits' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
