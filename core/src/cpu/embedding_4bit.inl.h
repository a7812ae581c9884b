#include "cpu/convert.inl.h"
#include "cpu/weight_4bit.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

void embedding_4bit_rows(const Embedding4bitArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kRun = 1024;
  const int64_t cols = args.weight.cols;
  float values[kRun];
  for (int64_t t = begin; t < end; ++t) {
    const int64_t row = args.index_dtype == DType::Int64 ? static_cast<const int64_t*>(args.indices)[t]
                                                         : static_cast<const int32_t*>(args.indices)[t];
    for (int64_t k = 0; k < cols; k += kRun) {
      const int64_t end_k = k + kRun < cols ? k + kRun : cols;
      decode_row(args.weight, row, k, end_k, values);
      from_floats(values, end_k - k, args.out, args.out_dtype, t * cols + k);
    }
  }
}
