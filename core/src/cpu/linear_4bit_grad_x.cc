#include <algorithm>

#include "cpu/float_rows.h"
#include "cpu/linear_4bit_grad_x_kernel.h"
#include "cpu/linear_4bit_kernel.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {

int64_t linear_4bit_grad_x_workspace(const Weight4bitArgs& weight, int64_t m, DType) {
  return float_rows_size(m, weight.rows);
}

void linear_4bit_grad_x(const Linear4bitGradXArgs& args) {
  linear_4bit_grad_x_rows(args, {.begin = 0, .count = args.weight.rows});
}

void linear_4bit_grad_x_rows(const Linear4bitGradXArgs& args, WeightRows rows) {
  float* grad = float_rows(args.workspace);
  const int64_t stride = float_row_stride(rows.count);
  parallel_for(args.m, std::max<int64_t>(1, 65536 / stride), [&](int64_t begin, int64_t end) {
    linear_4bit_grad_x_load_isa(args, rows.count, begin, end, grad, stride);
  });

  const int64_t tiles_k = (args.weight.cols - 1) / kGradTileK + 1;
  const int64_t tiles_m = (args.m - 1) / kGradTileM + 1;
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t k0 = task / tiles_m * kGradTileK;
      const int64_t m0 = task % tiles_m * kGradTileM;
      linear_4bit_grad_x_tile_isa(args, rows, grad, stride, m0, std::min(m0 + kGradTileM, args.m), k0,
                                  std::min(k0 + kGradTileK, args.weight.cols));
    }
  };
  parallel_for(tiles_k * tiles_m, 1, run, worth_waking(args.m, rows.count, args.weight.cols));
}

}  // namespace qbits::cpu
