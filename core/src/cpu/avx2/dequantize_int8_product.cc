#include "cpu/dequantize_int8_product_kernel.h"
#include "cpu/simd_avx2.h"

namespace qbits::cpu::avx2 {
#include "cpu/dequantize_int8_product.inl.h"
}
