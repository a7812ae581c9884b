#pragma once

#include "cpu/absmax.h"
#include "cpu/isa.h"
#include "ops/linear_4bit.h"

// out is computed in tiles of up to kLinearTileN outputs for up to kLinearTileM rows of x, each sum by one thread
// and in an order that depends on the shape alone. There are two ways:
//   few   up to kFewRows rows of x a tile: codes are used straight from memory (linear_4bit_few.inl.h)
//   many  a tile's rows of W are decoded once, then multiplied by all its rows of x
namespace qbits::cpu {

inline constexpr int64_t kLinearTileN = 32;
inline constexpr int64_t kLinearTileM = 192;
inline constexpr int64_t kFewRows = 8;

// Rows of the weight that a product is with: all of linear_4bit's, one expert's of grouped_linear_4bit.
struct WeightRows {
  int64_t begin;
  int64_t count;
};

// linear_4bit and its gradient with rows `rows` of the weight: out, or grad, has rows.count columns.
void linear_4bit_rows(const Linear4bitArgs& args, WeightRows rows);
void linear_4bit_grad_x_rows(const Linear4bitGradXArgs& args, WeightRows rows);

// Whether the product of m rows, or its gradient, is worth waking sleeping workers for.
bool worth_waking(int64_t m, int64_t rows, int64_t cols);

struct LinearTile {
  const float* x;  // all rows as linear_4bit_load_x wrote them
  int64_t stride;
  bool few;
  int64_t m0, m1;
  int64_t n0, n1;   // rows of the weight
  WeightRows rows;  // all those of the product
};

}  // namespace qbits::cpu

// Rows [begin, end) of x as floats, `stride` apart, zeros after the last column; in the order `few` wants or plain.
QBITS_PER_ISA(void, linear_4bit_load_x, const Linear4bitArgs& args, bool few, int64_t begin, int64_t end, float* x,
              int64_t stride)

// out[m0..m1] of weight rows n0..n1.
QBITS_PER_ISA(void, linear_4bit_tile, const Linear4bitArgs& args, const LinearTile& tile)
