#pragma once

#include <optional>

#include "float_bits.h"
#include "qbits/int8.h"

// Rows in 8 bits for the tests of LLM.int8()'s ops.

namespace qbits::test {

inline constexpr DType kFloats[] = {DType::Float32, DType::BFloat16, DType::Float16};

template <class T>
TensorView view_of(std::vector<T>& values, DType dtype, std::initializer_list<int64_t> shape) {
  return TensorView::contiguous(values.data(), dtype, shape);
}
inline TensorView workspace_of(std::vector<uint8_t>& bytes) {
  return view_of(bytes, DType::UInt8, {std::ssize(bytes)});
}

// What quantize_int8_rowwise makes of x.
struct QuantizedRows {
  int64_t rows, cols;
  float threshold;
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<int32_t> columns;
  int32_t count = 0;

  QuantizedRows(Buffer& x, int64_t m, int64_t k, float limit)
      : rows(m),
        cols(k),
        threshold(limit),
        codes(static_cast<size_t>(m * k), 99),
        scales(static_cast<size_t>(m), -7.0F),
        columns(static_cast<size_t>(k), -7) {
    std::optional<OutlierColumns> outliers;
    if (threshold > 0) {
      count = -7;
      outliers = {.columns = view_of(columns, DType::Int32, {k}),
                  .count = TensorView::contiguous(&count, DType::Int32, {1})};
    }
    std::vector<uint8_t> workspace(static_cast<size_t>(quantize_int8_rowwise_workspace(m, k, threshold, {})), 0xCD);
    quantize_int8_rowwise(view_of(x, {m, k}), threshold, view_of(codes, DType::Int8, {m, k}),
                          view_of(scales, DType::Float32, {m}), outliers, workspace_of(workspace));
    columns.resize(static_cast<size_t>(count));
  }
};

}  // namespace qbits::test
