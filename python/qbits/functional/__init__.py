"""Functions on tensors: bitsandbytes' of 4-bit and block-wise codes by its names, and those beyond."""

from qbits.functional.affine import dequantize_affine, quantize_affine
from qbits.functional.gemv_4bit import gemv_4bit
from qbits.functional.grouped_linear import grouped_linear_4bit
from qbits.functional.int8 import (
    Int8Double,
    Int8Rows,
    dequantize_int8_product,
    dequantize_int8_rowwise,
    igemm,
    quantize_int8_colwise,
    quantize_int8_double,
    quantize_int8_rowwise,
)
from qbits.functional.int8_weight import embedding_int8
from qbits.functional.linear import embedding_4bit, linear_4bit
from qbits.functional.linear_int8 import linear_int8
from qbits.functional.linear_int8_from_float import linear_int8_from_float
from qbits.functional.maps import (
    create_dynamic_map,
    create_fp8_map,
    create_linear_map,
    create_normal_map,
    create_quantile_map,
    estimate_quantiles,
    get_4bit_type,
)
from qbits.functional.plan import grouped_linear_4bit_plan, linear_4bit_plan
from qbits.functional.quant_state import QuantState
from qbits.functional.quantize_4bit import (
    dequantize_4bit,
    dequantize_fp4,
    dequantize_nf4,
    quantize_4bit,
    quantize_fp4,
    quantize_nf4,
)
from qbits.functional.quantize_blockwise import dequantize_blockwise, quantize_blockwise

__all__ = [
    "Int8Double",
    "Int8Rows",
    "QuantState",
    "create_dynamic_map",
    "create_fp8_map",
    "create_linear_map",
    "create_normal_map",
    "create_quantile_map",
    "dequantize_4bit",
    "dequantize_affine",
    "dequantize_blockwise",
    "dequantize_fp4",
    "dequantize_int8_product",
    "dequantize_int8_rowwise",
    "dequantize_nf4",
    "embedding_4bit",
    "embedding_int8",
    "estimate_quantiles",
    "gemv_4bit",
    "get_4bit_type",
    "grouped_linear_4bit",
    "grouped_linear_4bit_plan",
    "igemm",
    "linear_4bit",
    "linear_4bit_plan",
    "linear_int8",
    "linear_int8_from_float",
    "quantize_4bit",
    "quantize_affine",
    "quantize_blockwise",
    "quantize_fp4",
    "quantize_int8_colwise",
    "quantize_int8_double",
    "quantize_int8_rowwise",
    "quantize_nf4",
]
