#include <algorithm>
#include <bit>
#include <cmath>

#include "cpu/quantize_int8_colwise_kernel.h"
#include "cpu/thread_pool.h"
#include "ops/ceil_div.h"

namespace qbits::cpu {
namespace {

constexpr int64_t kStrip = 2048;  // columns whose largest magnitudes stay in the cache

// Chunks of rows, whose largest magnitudes are found apart: enough for the threads where columns are few.
int64_t chunks_of(int64_t rows) { return std::clamp<int64_t>(rows / 64, 1, 64); }

}  // namespace

int64_t quantize_int8_colwise_workspace(int64_t rows, int64_t cols) {
  return chunks_of(rows) * cols * static_cast<int64_t>(sizeof(float)) + static_cast<int64_t>(alignof(float));
}

void quantize_int8_colwise(const QuantizeInt8ColwiseArgs& args) {
  const auto address = reinterpret_cast<uintptr_t>(args.workspace);
  auto* const tops = reinterpret_cast<float*>((address + alignof(float) - 1) / alignof(float) * alignof(float));
  const int64_t chunks = chunks_of(args.rows);
  const int64_t height = ceil_div(args.rows, chunks);
  const int64_t strips = ceil_div(args.cols, kStrip);
  const auto part_of = [&](int64_t task) {
    const int64_t row0 = std::min(task / strips * height, args.rows);
    const int64_t col0 = task % strips * kStrip;
    return Int8Part{.row0 = row0,
                    .row1 = std::min(row0 + height, args.rows),
                    .col0 = col0,
                    .col1 = std::min(col0 + kStrip, args.cols)};
  };
  parallel_for(chunks * strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const Int8Part part = part_of(task);
      scan_int8_columns_isa(args, part, tops + task / strips * args.cols + part.col0);
    }
  });
  for (int64_t col = 0; col < args.cols; ++col) {
    int32_t top = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      top = std::max(top, std::bit_cast<int32_t>(tops[chunk * args.cols + col]));
    }
    const float scale = std::bit_cast<float>(top);
    args.scales[col] = std::isfinite(scale) ? scale : NAN;
  }
  parallel_for(chunks * strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) code_int8_columns_isa(args, part_of(task));
  });
}

}  // namespace qbits::cpu
