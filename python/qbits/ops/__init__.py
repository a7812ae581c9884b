"""The ops of libqbits as torch operators (`torch.ops.qbits.*`): traceable, without gradients, strictly typed.

`qbits.functional` and `qbits.nn` are the friendlier faces of the same functions.
"""

from qbits.ops.dequantize_4bit import dequantize_4bit
from qbits.ops.dequantize_absmax import dequantize_absmax
from qbits.ops.dequantize_affine import dequantize_affine
from qbits.ops.dequantize_blockwise import dequantize_blockwise
from qbits.ops.embedding_4bit import embedding_4bit
from qbits.ops.estimate_quantiles import estimate_quantiles
from qbits.ops.grouped_linear_4bit import grouped_linear_4bit
from qbits.ops.grouped_linear_4bit_grad_x import grouped_linear_4bit_grad_x
from qbits.ops.linear_4bit import linear_4bit
from qbits.ops.linear_4bit_grad_x import linear_4bit_grad_x
from qbits.ops.quantize_4bit import quantize_4bit
from qbits.ops.quantize_absmax import quantize_absmax
from qbits.ops.quantize_affine import quantize_affine
from qbits.ops.quantize_blockwise import quantize_blockwise

__all__ = [
    "dequantize_4bit",
    "dequantize_absmax",
    "dequantize_affine",
    "dequantize_blockwise",
    "embedding_4bit",
    "estimate_quantiles",
    "grouped_linear_4bit",
    "grouped_linear_4bit_grad_x",
    "linear_4bit",
    "linear_4bit_grad_x",
    "quantize_4bit",
    "quantize_absmax",
    "quantize_affine",
    "quantize_blockwise",
]
