#include "cpu/quantize_blockwise_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
#include "cpu/quantize_blockwise.inl.h"
}
