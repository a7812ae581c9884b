#include "cpu/optimizer_step_kernel.h"
#include "cpu/simd_avx512.h"

namespace qbits::cpu::avx512 {
#include "cpu/optimizer_step.inl.h"
}
