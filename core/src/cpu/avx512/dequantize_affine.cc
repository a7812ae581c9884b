#include "cpu/dequantize_affine_kernel.h"
#include "cpu/simd_avx512.h"

namespace qbits::cpu::avx512 {
#include "cpu/dequantize_affine.inl.h"
}
