#pragma once

#include "ops/int8.h"

namespace qbits::cuda {

inline constexpr int kOutlierValues = 64;

// What linear_int8 asks for besides the public op.
struct Int8Layout {
  int64_t pitch;                   // from row to row of codes, 0 behind the last column
  bool product_follows = false;    // and may start early, since it waits before it reads what is written here
  void* outlier_values = nullptr;  // [rows, kOutlierValues] in x's dtype: x in the first outlier columns, then 0
  bool takes_marks = false;        // the product can make do with marks
};

// Of few rows the columns with outliers may be left in the codes, arbitrary, and instead of a list there is a bit for
// each column, set in one block's marks or several.
struct Int8Marks {
  static constexpr int kMaxBlocks = 64;
  static constexpr int64_t kMaxColumns = 16384;
  const uint8_t* bits = nullptr;  // [blocks, pitch], on 16-byte boundaries; null if there is a list
  int blocks = 0;
  int64_t pitch = 0;
};

// On the current device. Its first kernel starts when all before it have ended, so a kernel that is launched next and
// overlaps may read, before it waits, whatever these do not write.
Int8Marks quantize_int8_rowwise(const QuantizeInt8RowwiseArgs& args, const Int8Layout& layout, Stream stream);

}  // namespace qbits::cuda
