#pragma once

#include "cpu/absmax.h"
#include "cpu/isa.h"
#include "cpu/linear_4bit_kernel.h"
#include "ops/linear_4bit.h"

// Tiles of out: kGradTileK columns for up to kGradTileM rows of grad.
namespace qbits::cpu {
inline constexpr int64_t kGradTileK = 256;
inline constexpr int64_t kGradTileM = 96;
}  // namespace qbits::cpu

// Rows [begin, end) of grad, of `columns` elements, as floats, `stride` apart.
QBITS_PER_ISA(void, linear_4bit_grad_x_load, const Linear4bitGradXArgs& args, int64_t columns, int64_t begin,
              int64_t end, float* grad, int64_t stride)

// out[m0..m1, k0..k1], at most one tile; each output is summed over n in ascending order.
QBITS_PER_ISA(void, linear_4bit_grad_x_tile, const Linear4bitGradXArgs& args, WeightRows rows, const float* grad,
              int64_t stride, int64_t m0, int64_t m1, int64_t k0, int64_t k1)
