// Quantizes a weight matrix to int8 rows and multiplies with it on the CPU as LLM.int8() does: columns of x that hold
// outliers stay as they are. Prints what that costs and how far off it is.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

#include "problem.h"
#include "qbits/int8.h"

int main() try {
  using qbits::DType, qbits::TensorView;
  constexpr float kThreshold = 6;
  std::vector<float> w = random_normal(kRows * kCols, 1), x = random_normal(kTokens * kCols, 2);
  for (int64_t i = 0; i < kTokens; ++i) x[i * kCols + 100] = 50;  // a column of outliers
  TensorView x_view = TensorView::contiguous(x.data(), DType::Float32, {kTokens, kCols});

  // The caller owns every tensor. A weight has no threshold: it is in 8 bits in all columns.
  std::vector<int8_t> codes(kRows * kCols);
  std::vector<float> scales(kRows);
  qbits::WeightInt8 weight{TensorView::contiguous(codes.data(), DType::Int8, {kRows, kCols}),
                           TensorView::contiguous(scales.data(), DType::Float32, {kRows})};
  std::vector<uint8_t> workspace(qbits::quantize_int8_rowwise_workspace(kRows, kCols, 0, x_view.device));
  qbits::quantize_int8_rowwise(TensorView::contiguous(w.data(), DType::Float32, {kRows, kCols}), 0, weight.codes,
                               weight.scales, std::nullopt,
                               TensorView::contiguous(workspace.data(), DType::UInt8, {std::ssize(workspace)}));

  std::vector<float> out(kTokens * kRows);
  workspace.resize(qbits::linear_int8_workspace(weight, kTokens, DType::Float32, kThreshold));
  qbits::linear_int8(x_view, weight, std::nullopt, kThreshold,
                     TensorView::contiguous(out.data(), DType::Float32, {kTokens, kRows}),
                     TensorView::contiguous(workspace.data(), DType::UInt8, {std::ssize(workspace)}));

  double error = relative_error(x, w, out);
  std::printf("int8 on the CPU: %.2f MB instead of %.2f MB, relative error of the product %.4f\n",
              (codes.size() + scales.size() * sizeof(float)) / 1e6, w.size() * sizeof(float) / 1e6, error);
  return error < kExpectedInt8Error ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
