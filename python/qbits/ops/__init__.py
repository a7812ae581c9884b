"""The ops of libqbits as torch operators (`torch.ops.qbits.*`): traceable, without gradients, strictly typed.

`qbits.functional` and `qbits.nn` are the friendlier faces of the same functions.
"""

from qbits.ops.dequantize_4bit import dequantize_4bit
from qbits.ops.dequantize_absmax import dequantize_absmax
from qbits.ops.dequantize_affine import dequantize_affine
from qbits.ops.dequantize_blockwise import dequantize_blockwise
from qbits.ops.dequantize_int8_product import dequantize_int8_product
from qbits.ops.dequantize_int8_rowwise import dequantize_int8_rowwise
from qbits.ops.embedding_4bit import embedding_4bit
from qbits.ops.estimate_quantiles import estimate_quantiles
from qbits.ops.grouped_linear_4bit import grouped_linear_4bit
from qbits.ops.grouped_linear_4bit_grad_x import grouped_linear_4bit_grad_x
from qbits.ops.igemm import igemm
from qbits.ops.linear_4bit import linear_4bit
from qbits.ops.linear_4bit_grad_x import linear_4bit_grad_x
from qbits.ops.linear_int8 import linear_int8
from qbits.ops.linear_int8_weight_only import linear_int8_weight_only
from qbits.ops.quantize_4bit import quantize_4bit
from qbits.ops.quantize_absmax import quantize_absmax
from qbits.ops.quantize_affine import quantize_affine
from qbits.ops.quantize_blockwise import quantize_blockwise
from qbits.ops.quantize_int8_colwise import quantize_int8_colwise
from qbits.ops.quantize_int8_rowwise import quantize_int8_rowwise

__all__ = [
    "dequantize_4bit",
    "dequantize_absmax",
    "dequantize_affine",
    "dequantize_blockwise",
    "dequantize_int8_product",
    "dequantize_int8_rowwise",
    "embedding_4bit",
    "estimate_quantiles",
    "grouped_linear_4bit",
    "grouped_linear_4bit_grad_x",
    "igemm",
    "linear_4bit",
    "linear_4bit_grad_x",
    "linear_int8",
    "linear_int8_weight_only",
    "quantize_4bit",
    "quantize_absmax",
    "quantize_affine",
    "quantize_blockwise",
    "quantize_int8_colwise",
    "quantize_int8_rowwise",
]
