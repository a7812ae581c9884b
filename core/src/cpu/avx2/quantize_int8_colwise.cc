#include "cpu/quantize_int8_colwise_kernel.h"
#include "cpu/simd_avx2.h"

namespace qbits::cpu::avx2 {
#include "cpu/quantize_int8_colwise.inl.h"
}
