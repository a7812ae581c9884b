#include "cpu/convert.inl.h"
#include "cpu/linear_4bit_few.inl.h"
#include "cpu/linear_4bit_many.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

void linear_4bit_load_x(const Linear4bitArgs& args, bool few, int64_t begin, int64_t end, float* x, int64_t stride) {
  const int64_t cols = args.weight.cols;
  for (int64_t m = begin; m < end; ++m) {
    float* row = x + m * stride;
    to_floats(args.x, args.dtype, m * cols, cols, row);
    for (int64_t k = cols; k < stride; ++k) row[k] = 0.0F;
    if (few) to_chunk_order(row, stride);
  }
}

void linear_4bit_tile(const Linear4bitArgs& args, const LinearTile& tile) {
  const int64_t n = tile.n1 - tile.n0;
  const int64_t m = tile.m1 - tile.m0;
  const float* x = tile.x + tile.m0 * tile.stride;
  alignas(64) float c[kLinearTileM * kLinearTileN];
  if (tile.few) {
    few_tile<kFewRows>(m, args.weight, x, tile.stride, tile.n0, tile.n1, c);
  } else {
    for (int64_t i = 0; i < m * kLinearTileN; ++i) c[i] = 0.0F;
    many_tile(m, args.weight, x, tile.stride, tile.n0, tile.n1, c);
  }
  float bias[kLinearTileN] = {};
  if (args.bias != nullptr) to_floats(args.bias, args.dtype, tile.n0, n, bias);
  for (int64_t i = 0; i < m; ++i) {
    float* row = c + i * kLinearTileN;
    for (int64_t j = 0; j < n; ++j) row[j] += bias[j];
    from_floats(row, n, args.out, args.dtype, (tile.m0 + i) * tile.rows.count + tile.n0 - tile.rows.begin);
  }
}
