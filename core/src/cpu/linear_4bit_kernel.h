#pragma once

#include "cpu/absmax.h"
#include "cpu/isa.h"
#include "ops/linear_4bit.h"

// Tiles of out: a run of tasks each computes kLinearTileN outputs for up to kLinearTileM rows of x, decoding
// its rows of W once.
namespace qbits::cpu {
inline constexpr int64_t kLinearTileN = 32;
inline constexpr int64_t kLinearTileM = 192;
}  // namespace qbits::cpu

// Rows [begin, end) of x as floats, `stride` apart, zeros after the last column.
QBITS_PER_ISA(void, linear_4bit_load_x, const Linear4bitArgs& args, int64_t begin, int64_t end, float* x,
              int64_t stride)

// out[m0..m1, n0..n1] from all of x as linear_4bit_load_x wrote it; at most one tile.
QBITS_PER_ISA(void, linear_4bit_tile, const Linear4bitArgs& args, const float* x, int64_t stride, int64_t m0,
              int64_t m1, int64_t n0, int64_t n1)
