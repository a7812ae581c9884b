#include "cpu/quantize_int8_colwise_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
#include "cpu/quantize_int8_colwise.inl.h"
}
