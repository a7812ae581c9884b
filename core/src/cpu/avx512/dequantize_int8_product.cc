#include "cpu/dequantize_int8_product_kernel.h"
#include "cpu/simd_avx512.h"

namespace qbits::cpu::avx512 {
#include "cpu/dequantize_int8_product.inl.h"
}
