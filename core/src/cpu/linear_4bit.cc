#include <algorithm>

#include "cpu/float_rows.h"
#include "cpu/linear_4bit_kernel.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {

int64_t linear_4bit_workspace(const Weight4bitArgs& weight, int64_t m, DType) {
  return float_rows_size(m, weight.cols);
}

void linear_4bit(const Linear4bitArgs& args) {
  float* x = float_rows(args.workspace);
  const int64_t stride = padded_cols(args.weight.cols);
  parallel_for(args.m, std::max<int64_t>(1, 65536 / (stride + 1)),
               [&](int64_t begin, int64_t end) { linear_4bit_load_x_isa(args, begin, end, x, stride); });

  const int64_t tiles_n = (args.weight.rows - 1) / kLinearTileN + 1;
  const int64_t tiles_m = (args.m - 1) / kLinearTileM + 1;
  parallel_for(tiles_n * tiles_m, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n0 = task / tiles_m * kLinearTileN;
      const int64_t m0 = task % tiles_m * kLinearTileM;
      linear_4bit_tile_isa(args, x, stride, m0, std::min(m0 + kLinearTileM, args.m), n0,
                           std::min(n0 + kLinearTileN, args.weight.rows));
    }
  });
}

}  // namespace qbits::cpu
