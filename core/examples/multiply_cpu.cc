// Quantizes a weight matrix to nf4, multiplies with it on the CPU and prints what that costs and how far off it is.
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>

#include "problem.h"
#include "qbits/linear.h"
#include "qbits/quantize.h"

int main() try {
  using qbits::DType, qbits::TensorView;
  std::vector<float> w = random_normal(kRows * kCols, 1), x = random_normal(kTokens * kCols, 2);

  // The caller owns every tensor; qbits says how large they must be.
  const qbits::Format& nf4 = qbits::format("nf4");
  std::vector<uint8_t> codes(qbits::codes_size(nf4, kRows * kCols));
  std::vector<float> absmax(qbits::num_scales(nf4, kRows, kCols, kBlockSize));

  qbits::Weight4bit weight;
  weight.format = &nf4;
  weight.rows = kRows;
  weight.cols = kCols;
  weight.block_size = kBlockSize;
  weight.codes = TensorView::contiguous(codes.data(), DType::UInt8, {std::ssize(codes)});
  weight.absmax.values = TensorView::contiguous(absmax.data(), DType::Float32, {std::ssize(absmax)});
  qbits::quantize_4bit(TensorView::contiguous(w.data(), DType::Float32, {kRows, kCols}), nf4, kBlockSize, weight.codes,
                       weight.absmax.values);

  std::vector<float> out(kTokens * kRows);
  std::vector<uint8_t> workspace(qbits::linear_4bit_workspace(weight, kTokens, DType::Float32));
  qbits::linear_4bit(TensorView::contiguous(x.data(), DType::Float32, {kTokens, kCols}), weight, std::nullopt,
                     TensorView::contiguous(out.data(), DType::Float32, {kTokens, kRows}),
                     TensorView::contiguous(workspace.data(), DType::UInt8, {std::ssize(workspace)}));

  double error = relative_error(x, w, out);
  std::printf("nf4 on the CPU: %.2f MB instead of %.2f MB, relative error of the product %.4f\n",
              (codes.size() + absmax.size() * sizeof(float)) / 1e6, w.size() * sizeof(float) / 1e6, error);
  return error < kExpectedError ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
