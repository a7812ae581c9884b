#include "cpu/dequantize_absmax_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
#include "cpu/dequantize_absmax.inl.h"
}
