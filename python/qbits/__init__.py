"""qbits: large neural networks in little memory. 4-bit and 8-bit weights for PyTorch and C++."""

import torch

from qbits import _C as _C
from qbits import formats, ops
from qbits.formats import FORMATS, Format
from qbits.runtime import available_isas, isa, num_threads, set_isa, set_num_threads

__version__ = _C.VERSION

__all__ = [
    "FORMATS",
    "Format",
    "available_isas",
    "formats",
    "isa",
    "num_threads",
    "ops",
    "set_isa",
    "set_num_threads",
]

set_num_threads(torch.get_num_threads())
