#include "cpu/dequantize_affine_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
#include "cpu/dequantize_affine.inl.h"
}
