#include "cpu/dequantize_int8_rowwise_kernel.h"
#include "cpu/simd_avx512.h"

namespace qbits::cpu::avx512 {
#include "cpu/dequantize_int8_rowwise.inl.h"
}
