#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

#include "qbits/dtype.h"
#include "qbits/tensor.h"

// Float conversions and random data for the tests, written apart from the library's own.

namespace qbits::test {

// A float as stored in `dtype`, by the definition: the nearest representable value, halves to even.
inline float rounded(double x, DType dtype) {
  if (dtype == DType::Float32 || !std::isfinite(x) || x == 0) return static_cast<float>(x);
  const int digits = dtype == DType::BFloat16 ? 8 : 11;
  const int lowest = dtype == DType::BFloat16 ? -133 : -24;  // exponent of the smallest subnormal
  int exponent;
  std::frexp(x, &exponent);
  const int unit = std::max(exponent - digits, lowest);
  const double value = std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
  const double largest = dtype == DType::BFloat16 ? 0x1.FEp127 : 65504.0;
  return static_cast<float>(std::fabs(value) > largest ? std::copysign(INFINITY, x) : value);
}

// A vector of `dtype` elements in raw storage.
struct Buffer {
  DType dtype;
  std::vector<uint8_t> bytes;

  Buffer(DType type, int64_t n) : dtype(type), bytes(static_cast<size_t>(n * itemsize(type)), 0xAB) {}

  void set(int64_t i, float x) {
    const uint32_t b = std::bit_cast<uint32_t>(x);
    if (dtype == DType::Float32) {
      reinterpret_cast<float*>(bytes.data())[i] = x;
    } else if (dtype == DType::BFloat16) {
      reinterpret_cast<uint16_t*>(bytes.data())[i] = static_cast<uint16_t>(b >> 16);
    } else {
      reinterpret_cast<_Float16*>(bytes.data())[i] = static_cast<_Float16>(x);
    }
  }
  float get(int64_t i) const {
    if (dtype == DType::Float32) return reinterpret_cast<const float*>(bytes.data())[i];
    if (dtype == DType::Float16) return static_cast<float>(reinterpret_cast<const _Float16*>(bytes.data())[i]);
    return std::bit_cast<float>(static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(bytes.data())[i]) << 16);
  }
};

inline TensorView view_of(Buffer& buffer, std::initializer_list<int64_t> shape) {
  return TensorView::contiguous(buffer.bytes.data(), buffer.dtype, shape);
}

// Normal random values already rounded to `dtype`.
inline Buffer random_buffer(DType dtype, int64_t n, uint32_t seed, float scale = 1.0F) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0F, scale);
  Buffer buffer(dtype, n);
  for (int64_t i = 0; i < n; ++i) buffer.set(i, rounded(normal(engine), dtype));
  return buffer;
}

}  // namespace qbits::test
