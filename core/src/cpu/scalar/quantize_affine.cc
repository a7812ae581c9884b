#include "cpu/quantize_affine_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
#include "cpu/quantize_affine.inl.h"
}
