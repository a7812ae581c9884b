#include "cpu/quantize_4bit_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
#include "cpu/quantize_4bit.inl.h"
}
