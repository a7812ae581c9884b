#include <algorithm>

#include "cpu/float_rows.h"
#include "cpu/linear_4bit_kernel.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {
namespace {

// Multiplications from which on sleeping workers are woken. Measured on two cores: with 885,000 of them (73 us on
// AVX2, 45 us on AVX-512) it costs or saves 10 us.
constexpr double kWakeProducts = 1 << 20;

// How a product is cut into tasks.
struct Cut {
  bool few;
  int64_t tiles_m;
  int64_t tile_m;  // tiles of about equal height
  int64_t tiles_n;
  bool wake;

  Cut(int64_t m, int64_t rows, int64_t cols)
      : few(m <= kFewRows && cols % 8 == 0),
        tiles_m((m - 1) / kLinearTileM + 1),
        tile_m((m - 1) / tiles_m + 1),
        tiles_n((rows - 1) / kLinearTileN + 1),
        wake(worth_waking(m, rows, cols)) {}
};

}  // namespace

bool worth_waking(int64_t m, int64_t rows, int64_t cols) {
  return static_cast<double>(m) * static_cast<double>(rows) * static_cast<double>(cols) >= kWakeProducts;
}

int64_t linear_4bit_workspace(const Weight4bitArgs& weight, int64_t m, DType) {
  return float_rows_size(m, weight.cols);
}

void linear_4bit(const Linear4bitArgs& args) { linear_4bit_rows(args, {.begin = 0, .count = args.weight.rows}); }

void linear_4bit_rows(const Linear4bitArgs& args, WeightRows rows) {
  const Weight4bitArgs& w = args.weight;
  const Cut cut(args.m, rows.count, w.cols);
  float* x = float_rows(args.workspace);
  const int64_t stride = float_row_stride(w.cols);
  parallel_for(args.m, std::max<int64_t>(1, 65536 / stride),
               [&](int64_t begin, int64_t end) { linear_4bit_load_x_isa(args, cut.few, begin, end, x, stride); });

  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n0 = rows.begin + task / cut.tiles_m * kLinearTileN;
      const int64_t m0 = task % cut.tiles_m * cut.tile_m;
      if (m0 >= args.m) continue;
      const LinearTile tile{.x = x,
                            .stride = stride,
                            .few = cut.few,
                            .m0 = m0,
                            .m1 = std::min(m0 + cut.tile_m, args.m),
                            .n0 = n0,
                            .n1 = std::min(n0 + kLinearTileN, rows.begin + rows.count),
                            .rows = rows};
      linear_4bit_tile_isa(args, tile);
    }
  };
  parallel_for(cut.tiles_n * cut.tiles_m, 1, run, cut.wake);
}

std::string linear_4bit_plan(const Weight4bitArgs& weight, int64_t m) {
  const Cut cut(m, weight.rows, weight.cols);
  const int64_t tiles = cut.tiles_n * cut.tiles_m;
  std::string text = "cpu ";
  text.append(name(active_isa())).append(cut.few ? ", few rows of x" : ", many rows of x");
  text += ", " + std::to_string(tiles) + (tiles == 1 ? " tile " : " tiles ") + std::to_string(cut.tile_m) + "x" +
          std::to_string(std::min(kLinearTileN, weight.rows));
  const int64_t threads = std::min<int64_t>(num_threads(), tiles);
  text += ", " + std::to_string(threads) + (threads == 1 ? " thread" : " threads");
  if (threads > 1 && !cut.wake) text += " if awake";
  if (!cut.few && m <= kFewRows) text += " (K is no multiple of 8)";
  return text;
}

}  // namespace qbits::cpu
