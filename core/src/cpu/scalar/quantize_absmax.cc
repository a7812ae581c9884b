#include "cpu/quantize_absmax_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
#include "cpu/quantize_absmax.inl.h"
}
