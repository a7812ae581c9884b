#include "cpu/dequantize_4bit_kernel.h"
#include "cpu/simd_avx512.h"

namespace qbits::cpu::avx512 {
#include "cpu/dequantize_4bit.inl.h"
}
