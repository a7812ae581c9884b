#include "cpu/optimizer_step_kernel.h"
#include "cpu/simd_avx2.h"

namespace qbits::cpu::avx2 {
#include "cpu/optimizer_step.inl.h"
}
