#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

// The problem the examples solve: a 1024 x 2048 weight times four vectors, all normally distributed.
inline constexpr int64_t kRows = 1024, kCols = 2048, kTokens = 4, kBlockSize = 64;

// NF4 in blocks of 64 is 0.092 off on normal weights.
inline constexpr double kExpectedError = 0.11;

// int8 with a column of outliers apart is 0.010 off; with that column rounded too, 0.075.
inline constexpr double kExpectedInt8Error = 0.02;

inline std::vector<float> random_normal(int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

// |out - x W^T| / |x W^T| in the Frobenius norm, the product taken in double.
inline double relative_error(const std::vector<float>& x, const std::vector<float>& w, const std::vector<float>& out) {
  double error = 0, norm = 0;
  for (int64_t i = 0; i < kTokens * kRows; ++i) {
    double exact = 0;
    for (int64_t k = 0; k < kCols; ++k) exact += double{x[i / kRows * kCols + k]} * w[i % kRows * kCols + k];
    error += (out[i] - exact) * (out[i] - exact);
    norm += exact * exact;
  }
  return std::sqrt(error / norm);
}
