#include "cpu/simd_scalar.h"
#include "cpu/quantize_4bit_kernel.h"

namespace qbits::cpu::scalar {
#include "cpu/quantize_4bit.inl.h"
}
