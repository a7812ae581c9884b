#include "cpu/quantize_blockwise_kernel.h"
#include "cpu/simd_avx2.h"

namespace qbits::cpu::avx2 {
#include "cpu/quantize_blockwise.inl.h"
}
