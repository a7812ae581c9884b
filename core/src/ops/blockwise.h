#pragma once

#include <bit>

#include "ops/args.h"

namespace qbits {

// Encoding to an ascending 256-entry code by comparison alone: the result is the number of `i` in 0..254 with
// q > thresholds[i], where thresholds[i] = max(blockwise_threshold(code[i], code[i + 1], i), thresholds[i - 1]).
// (The maximum matters only where entries repeat: a q equal to a repeated entry gets its first even index.)
// A block whose absmax is 0 or not finite gets the index of q = 0 for all elements.

// The next float towards -inf of a finite `x`.
constexpr float next_below(float x) {
  const int32_t bits = std::bit_cast<int32_t>(x);
  if (x == 0.0F) return std::bit_cast<float>(0x80000001U);
  return std::bit_cast<float>(bits > 0 ? bits - 1 : bits + 1);
}

// The largest float that goes to `low` = code[index] rather than to `high` = code[index + 1]. The exact
// midpoint goes to the even index, so to `low` if `index` is even.
constexpr float blockwise_threshold(float low, float high, int index) {
  const double a = low;
  const double b = high;
  const double sum = a + b;
  const double part = sum - a;
  const double error = (a - (sum - part)) + (b - part);  // a + b = sum + error, exactly (Knuth's TwoSum)
  const double middle = sum / 2;
  const float t = static_cast<float>(middle);
  if (t > middle || (t == middle && error < 0.0)) return next_below(t);
  if (t == middle && error == 0.0 && index % 2 != 0) return next_below(t);
  return t;
}

struct QuantizeBlockwiseArgs {
  const void* x;
  DType x_dtype;
  int64_t n;
  const float* code;
  int64_t block_size;
  uint8_t* codes;
  float* absmax;
  Device device;
};

struct DequantizeBlockwiseArgs {
  const uint8_t* codes;
  const float* absmax;
  const float* code;
  int64_t block_size;
  int64_t n;
  void* out;
  DType out_dtype;
  Device device;
};

namespace cpu {
void quantize_blockwise(const QuantizeBlockwiseArgs& args);
void dequantize_blockwise(const DequantizeBlockwiseArgs& args);
}  // namespace cpu
namespace cuda {
void quantize_blockwise(const QuantizeBlockwiseArgs& args, Stream stream);
void dequantize_blockwise(const DequantizeBlockwiseArgs& args, Stream stream);
}  // namespace cuda

}  // namespace qbits
