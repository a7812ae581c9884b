#include "cpu/quantize_int8_rowwise_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
#include "cpu/quantize_int8_rowwise.inl.h"
}
