#pragma once

#include <optional>
#include <random>

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

// A weight of random codes and scales; its second row has scale 0 where there are three or more.
struct Weight {
  int64_t n, k;
  std::vector<int8_t> codes;
  std::vector<float> scales;

  Weight(int64_t rows, int64_t cols, uint32_t seed) : n(rows), k(cols) {
    std::mt19937 engine(seed);
    for (int64_t i = 0; i < n * k; ++i) codes.push_back(static_cast<int8_t>(engine() % 256 - 128));
    for (int64_t i = 0; i < n; ++i) scales.push_back(0.001F + 1e-10F * static_cast<float>(engine()));
    if (n > 2) scales[1] = 0.0F;
  }
  WeightInt8 view() {
    return {.codes = view_of(codes, DType::Int8, {n, k}), .scales = view_of(scales, DType::Float32, {n})};
  }
};

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
