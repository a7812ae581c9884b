#pragma once

#include "ops/int8.h"

namespace qbits::cuda {

inline constexpr int kOutlierValues = 64;

// What linear_int8 asks for besides the public op.
struct Int8Layout {
  int64_t pitch;                   // from row to row of codes, 0 behind the last column
  bool product_follows = false;    // and may start early, since it waits before it reads what is written here
  void* outlier_values = nullptr;  // [rows, kOutlierValues] in x's dtype: x in the first outlier columns, then 0
  bool marks_alone = false;        // of outlier columns: they stay in the codes, and no list is made
};

// [count, pitch]: bits of the columns that hold an outlier in a share of the rows; columns are outlier columns of all
// that have a bit in any. Rows are a multiple of 16 bytes.
struct Int8Marks {
  const uint8_t* marks;
  int count;
  int64_t pitch;
};

// On the current device. Its first kernel lets the next start when all before it have ended, so a kernel that is
// launched next and overlaps may read, before it waits, whatever these do not write.
Int8Marks quantize_int8_rowwise(const QuantizeInt8RowwiseArgs& args, const Int8Layout& layout, Stream stream);

}  // namespace qbits::cuda
