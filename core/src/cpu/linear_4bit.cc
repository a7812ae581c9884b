#include <algorithm>

#include "cpu/float_rows.h"
#include "cpu/linear_4bit_kernel.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {
int64_t linear_4bit_workspace(const Weight4bitArgs& weight, int64_t m, DType) {
  return float_rows_size(m, weight.cols);
}

void linear_4bit(const Linear4bitArgs& args) {
  const Weight4bitArgs& w = args.weight;
  const bool few = args.m <= kFewRows && w.cols % 8 == 0;
  float* x = float_rows(args.workspace);
  const int64_t stride = float_row_stride(w.cols);
  parallel_for(args.m, std::max<int64_t>(1, 65536 / stride),
               [&](int64_t begin, int64_t end) { linear_4bit_load_x_isa(args, few, begin, end, x, stride); });

  const int64_t tiles_m = (args.m - 1) / kLinearTileM + 1;
  const int64_t tile_m = (args.m - 1) / tiles_m + 1;  // tiles of about equal height
  const int64_t tiles_n = (w.rows - 1) / kLinearTileN + 1;
  parallel_for(tiles_n * tiles_m, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n0 = task / tiles_m * kLinearTileN;
      const int64_t m0 = task % tiles_m * tile_m;
      if (m0 >= args.m) continue;
      const LinearTile tile{.x = x,
                            .stride = stride,
                            .few = few,
                            .m0 = m0,
                            .m1 = std::min(m0 + tile_m, args.m),
                            .n0 = n0,
                            .n1 = std::min(n0 + kLinearTileN, w.rows)};
      linear_4bit_tile_isa(args, tile);
    }
  });
}

}  // namespace qbits::cpu
