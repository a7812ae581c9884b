#include <algorithm>

#include "cpu/linear_4bit_kernel.h"
#include "cpu/linear_int8_kernel.h"
#include "cpu/quantize_int8_rowwise_kernel.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {
namespace {

int64_t padded(int64_t size) { return (size + kInt8RowAlignment - 1) / kInt8RowAlignment * kInt8RowAlignment; }

// The workspace, each part on a cache line of its own.
struct Layout {
  int64_t stride;  // of codes: whole lines and one more, so that rows of a power of two do not meet in the same sets
  int64_t depths;
  int64_t codes = 0, scales, sums, columns, values, size;

  Layout(int64_t m, int64_t k, bool outliers)
      : stride(padded(k) + kInt8RowAlignment),
        depths((k + kInt8Depth - 1) / kInt8Depth),
        scales(codes + m * stride),
        sums(scales + padded(m * 4)),
        columns(sums + padded(m * depths * 4)),
        values(columns + (outliers ? padded(k * 4) : 0)),
        size(values + (outliers ? m * padded(k * 4) : 0)) {}
};

}  // namespace

int64_t linear_int8_workspace(int64_t m, int64_t, int64_t k, DType, float threshold) {
  // More rows than any memory holds would overflow the sum.
  return Layout(std::min(m, int64_t{1} << 52), k, threshold > 0).size + kInt8RowAlignment;
}

void linear_int8(const LinearInt8Args& args) {
  const bool any = args.threshold > 0;
  const Layout layout(args.m, args.k, any);
  auto* const base = reinterpret_cast<uint8_t*>(padded(reinterpret_cast<int64_t>(args.workspace)));
  auto* const codes = reinterpret_cast<int8_t*>(base + layout.codes);
  auto* const scales = reinterpret_cast<float*>(base + layout.scales);
  auto* const sums = reinterpret_cast<int32_t*>(base + layout.sums);
  auto* const columns = any ? reinterpret_cast<int32_t*>(base + layout.columns) : nullptr;
  auto* const values = reinterpret_cast<float*>(base + layout.values);

  const int64_t outliers = quantize_int8_rows({.x = args.x,
                                               .x_dtype = args.dtype,
                                               .cols = args.k,
                                               .threshold = args.threshold,
                                               .scales = scales,
                                               .outliers = columns,
                                               .codes = codes,
                                               .stride = layout.stride},
                                              args.m);
  const Int8X x{.codes = codes,
                .stride = layout.stride,
                .sums = sums,
                .depths = layout.depths,
                .scales = scales,
                .columns = columns,
                .outliers = outliers,
                .values = values,
                .value_stride = padded(outliers * 4) / 4};
  parallel_for(args.m, std::max<int64_t>(1, 65536 / layout.stride),
               [&](int64_t begin, int64_t end) { linear_int8_load_x_isa(args, x, begin, end, sums, values); });

  const int64_t tiles_m = (args.m - 1) / kInt8TileM + 1;
  const int64_t tiles_n = (args.n - 1) / kInt8TileN + 1;
  const int64_t tile_m = (args.m - 1) / tiles_m + 1;  // tiles of about equal height
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n0 = task / tiles_m * kInt8TileN;
      const int64_t m0 = task % tiles_m * tile_m;
      if (m0 >= args.m) continue;
      const Int8Tile tile{
          .m0 = m0, .m1 = std::min(m0 + tile_m, args.m), .n0 = n0, .n1 = std::min(n0 + kInt8TileN, args.n)};
      linear_int8_tile_isa(args, x, tile);
    }
  };
  parallel_for(tiles_n * tiles_m, 1, run, worth_waking(args.m, args.n, args.k));
}

}  // namespace qbits::cpu
