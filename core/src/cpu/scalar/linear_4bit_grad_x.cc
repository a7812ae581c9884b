#include "cpu/linear_4bit_grad_x_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
#include "cpu/linear_4bit_grad_x.inl.h"
}
