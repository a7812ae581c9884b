#include "cpu/linear_4bit_grad_x_kernel.h"
#include "cpu/simd_avx2.h"

namespace qbits::cpu::avx2 {
#include "cpu/linear_4bit_grad_x.inl.h"
}
