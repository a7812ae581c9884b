#include "cpu/linear_int8_weight_only_kernel.h"
#include "cpu/simd_avx2.h"

namespace qbits::cpu::avx2 {
#include "cpu/linear_int8_weight_only.inl.h"
}
