"""qbits: large neural networks in little memory. 4-bit and 8-bit weights for PyTorch and C++."""

import torch

from qbits import _C as _C
from qbits import formats, functional, nn, ops
from qbits import tensor_ops as tensor_ops  # registers what torch's functions do with a QuantizedTensor
from qbits.config import QuantizeConfig
from qbits.formats import FORMATS, Format
from qbits.quantize_model import dequantize_, quantize_
from qbits.runtime import available_isas, isa, num_threads, set_isa, set_num_threads
from qbits.tensor import QuantizedTensor, quantize

__version__ = _C.VERSION

__all__ = [
    "FORMATS",
    "Format",
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
    "quantize",
    "quantize_",
    "set_isa",
    "set_num_threads",
]

set_num_threads(torch.get_num_threads())
