#include "cpu/dequantize_absmax_kernel.h"
#include "cpu/simd_avx2.h"

namespace qbits::cpu::avx2 {
#include "cpu/dequantize_absmax.inl.h"
}
