#include <algorithm>

#include "cpu/quantize_int8_rowwise_kernel.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {
namespace {

// The positions of the ones, in place, then -1: an entry is read before anything is written there.
int64_t positions(int32_t* ones, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (ones[i] != 0) ones[count++] = static_cast<int32_t>(i);
  }
  std::fill(ones + count, ones + n, -1);
  return count;
}

}  // namespace

int64_t quantize_int8_rows(const Int8Rows& rows, int64_t count) {
  const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(rows.cols, 1));
  if (rows.outliers == nullptr) {
    parallel_for(count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {  // the second pass finds its row in the cache
        scan_int8_rows_isa(rows, row, row + 1);
        code_int8_rows_isa(rows, 0, row, row + 1);
      }
    });
    return 0;
  }
  std::fill_n(rows.outliers, rows.cols, 0);
  parallel_for(count, grain, [&](int64_t begin, int64_t end) { scan_int8_rows_isa(rows, begin, end); });
  const int64_t outliers = positions(rows.outliers, rows.cols);
  parallel_for(count, grain, [&](int64_t begin, int64_t end) { code_int8_rows_isa(rows, outliers, begin, end); });
  return outliers;
}

int64_t quantize_int8_rowwise_workspace(int64_t, int64_t, float) { return 0; }

void quantize_int8_rowwise(const QuantizeInt8RowwiseArgs& args) {
  const Int8Rows rows{.x = args.x,
                      .x_dtype = args.x_dtype,
                      .cols = args.cols,
                      .threshold = args.threshold,
                      .scales = args.scales,
                      .outliers = args.outlier_columns,
                      .codes = args.codes,
                      .stride = args.cols};
  const int64_t outliers = quantize_int8_rows(rows, args.rows);
  if (args.outlier_count != nullptr) *args.outlier_count = static_cast<int32_t>(outliers);
}

}  // namespace qbits::cpu
