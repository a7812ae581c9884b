#include "cpu/dequantize_int8_product_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
#include "cpu/dequantize_int8_product.inl.h"
}
