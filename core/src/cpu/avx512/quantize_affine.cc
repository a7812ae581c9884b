#include "cpu/quantize_affine_kernel.h"
#include "cpu/simd_avx512.h"

namespace qbits::cpu::avx512 {
#include "cpu/quantize_affine.inl.h"
}
