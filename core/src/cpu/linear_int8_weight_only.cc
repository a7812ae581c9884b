#include <algorithm>

#include "cpu/float_rows.h"
#include "cpu/linear_int8_weight_only_kernel.h"
#include "cpu/thread_pool.h"
#include "ops/ceil_div.h"

namespace qbits::cpu {

int64_t linear_int8_weight_only_workspace(int64_t m, int64_t, int64_t k, DType) {
  // More rows than any memory holds would overflow the product.
  return float_rows_size(std::min(m, int64_t{1} << 50), k);
}

void linear_int8_weight_only(const LinearInt8WeightOnlyArgs& args) {
  float* const x = float_rows(args.workspace);
  const int64_t stride = float_row_stride(args.k);
  parallel_for(args.m, std::max<int64_t>(1, 65536 / stride),
               [&](int64_t begin, int64_t end) { linear_int8_weight_only_load_x_isa(args, begin, end, x, stride); });
  const int64_t tiles_m = ceil_div(args.m, kLinearTileM);
  const int64_t tiles_n = ceil_div(args.n, kLinearTileN);
  const int64_t tile_m = ceil_div(args.m, tiles_m);  // tiles of about equal height
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n0 = task / tiles_m * kLinearTileN;
      const int64_t m0 = task % tiles_m * tile_m;
      if (m0 >= args.m) continue;
      const Int8FloatTile tile{.x = x,
                               .stride = stride,
                               .m0 = m0,
                               .m1 = std::min(m0 + tile_m, args.m),
                               .n0 = n0,
                               .n1 = std::min(n0 + kLinearTileN, args.n)};
      linear_int8_weight_only_tile_isa(args, tile);
    }
  };
  parallel_for(tiles_n * tiles_m, 1, run, worth_waking(args.m, args.n, args.k));
}

}  // namespace qbits::cpu
