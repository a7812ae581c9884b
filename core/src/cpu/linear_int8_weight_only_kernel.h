#pragma once

#include "cpu/isa.h"
#include "cpu/linear_4bit_kernel.h"
#include "ops/int8.h"

// In tiles as linear_4bit. Up to kFewInt8Rows rows of x use the codes straight from memory.
namespace qbits::cpu {

inline constexpr int64_t kFewInt8Rows = 4;

struct Int8FloatTile {
  const float* x;  // all rows, `stride` apart, with zeros behind
  int64_t stride;
  int64_t m0, m1;
  int64_t n0, n1;
};

}  // namespace qbits::cpu

// Rows [begin, end) of x as floats.
QBITS_PER_ISA(void, linear_int8_weight_only_load_x, const LinearInt8WeightOnlyArgs& args, int64_t begin, int64_t end,
              float* x, int64_t stride)

// out of one tile.
QBITS_PER_ISA(void, linear_int8_weight_only_tile, const LinearInt8WeightOnlyArgs& args, const Int8FloatTile& tile)
