#include "cpu/simd_scalar.h"
#include "cpu/dequantize_4bit_kernel.h"

namespace qbits::cpu::scalar {
#include "cpu/dequantize_4bit.inl.h"
}
