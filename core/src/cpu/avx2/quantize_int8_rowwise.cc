#include "cpu/quantize_int8_rowwise_kernel.h"
#include "cpu/simd_avx2.h"

namespace qbits::cpu::avx2 {
#include "cpu/quantize_int8_rowwise.inl.h"
}
