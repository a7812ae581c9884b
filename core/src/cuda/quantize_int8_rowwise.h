#pragma once

#include "ops/int8.h"

namespace qbits::cuda {

inline constexpr int kOutlierValues = 64;

// What linear_int8 asks for besides the public op.
struct Int8Layout {
  int64_t pitch;                   // from row to row of codes, 0 behind the last column
  bool product_follows = false;    // and may start early, since it waits before it reads what is written here
  void* outlier_values = nullptr;  // [rows, kOutlierValues] in x's dtype: x in the first outlier columns, then 0
};

// On the current device. Its first kernel starts when all before it have ended, so a kernel that is launched next and
// overlaps may read, before it waits, whatever these do not write.
void quantize_int8_rowwise(const QuantizeInt8RowwiseArgs& args, const Int8Layout& layout, Stream stream);

}  // namespace qbits::cuda
