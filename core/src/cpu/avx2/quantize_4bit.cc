#include "cpu/simd_avx2.h"
#include "cpu/quantize_4bit_kernel.h"

namespace qbits::cpu::avx2 {
#include "cpu/quantize_4bit.inl.h"
}
