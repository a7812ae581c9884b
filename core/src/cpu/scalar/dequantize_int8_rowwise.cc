#include "cpu/dequantize_int8_rowwise_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
#include "cpu/dequantize_int8_rowwise.inl.h"
}
