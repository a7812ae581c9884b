#include "cpu/linear_int8_weight_only_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
#include "cpu/linear_int8_weight_only.inl.h"
}
