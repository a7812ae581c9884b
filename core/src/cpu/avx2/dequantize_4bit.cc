#include "cpu/dequantize_4bit_kernel.h"
#include "cpu/simd_avx2.h"

namespace qbits::cpu::avx2 {
#include "cpu/dequantize_4bit.inl.h"
}
