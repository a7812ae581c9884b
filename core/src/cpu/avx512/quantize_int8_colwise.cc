#include "cpu/quantize_int8_colwise_kernel.h"
#include "cpu/simd_avx512.h"

namespace qbits::cpu::avx512 {
#include "cpu/quantize_int8_colwise.inl.h"
}
