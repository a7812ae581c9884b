#include "cpu/linear_int8_weight_only_kernel.h"
#include "cpu/simd_avx512.h"

namespace qbits::cpu::avx512 {
#include "cpu/linear_int8_weight_only.inl.h"
}
