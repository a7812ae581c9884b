#include "cpu/optimizer_step_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
#include "cpu/optimizer_step.inl.h"
}
