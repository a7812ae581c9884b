#pragma once

#include "cpu/isa.h"
#include "ops/int8.h"

// quantize_int8_rowwise has two passes, with the list of all rows' outlier columns made in between. linear_int8
// quantizes x by the same two.
namespace qbits::cpu {

struct Int8Rows {
  const void* x;  // [.., cols]
  DType x_dtype;
  int64_t cols;
  float threshold;
  float* scales;
  int32_t* outliers;  // [cols]; null without a threshold
  int8_t* codes;
  int64_t stride;  // from one row of codes to the next; zeros fill what is over
};

// Runs both passes over rows [0, count), rows.outliers between them becoming the ascending list; returns its length.
int64_t quantize_int8_rows(const Int8Rows& rows, int64_t count);

}  // namespace qbits::cpu

// Scales of rows [begin, end), and outliers[k] = 1 where column k holds an outlier.
QBITS_PER_ISA(void, scan_int8_rows, const Int8Rows& rows, int64_t begin, int64_t end)

// Codes of rows [begin, end) by their scales; outliers begins with the list of `count` columns.
QBITS_PER_ISA(void, code_int8_rows, const Int8Rows& rows, int64_t count, int64_t begin, int64_t end)
