#include "cpu/quantize_absmax_kernel.h"
#include "cpu/simd_avx2.h"

namespace qbits::cpu::avx2 {
#include "cpu/quantize_absmax.inl.h"
}
