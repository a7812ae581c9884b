#include "cpu/dequantize_blockwise_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
#include "cpu/dequantize_blockwise.inl.h"
}
