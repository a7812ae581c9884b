#pragma once

#include "cuda/quantize_blocks.cuh"
#include "ops/affine.h"

// What the quantizers of affine formats know of a group.

namespace qbits::cuda {

// The bits of the largest and of the negated smallest element, at least +0 each.
struct Range {
  int top;
  int bottom;
};

__device__ inline void widen(Range& range, float x) {
  range.top = max(range.top, __float_as_int(x));
  range.bottom = max(range.bottom, __float_as_int(-x));
}

__device__ inline Range range_of(const Run<float, kRun>& x) {
  Range range{0, 0};
#pragma unroll
  for (int i = 0; i < kRun; ++i) widen(range, x[i]);
  return range;
}

template <class T>
__device__ Range range_of(const Run<T, kRun>& x) {
  Pair<T> low = x.pair(0);
  Pair<T> high = x.pair(0);
#pragma unroll
  for (int k = 1; k < kRun / 2; ++k) {
    low = __hmin2_nan(low, x.pair(k));
    high = __hmax2_nan(high, x.pair(k));
  }
  Range range{0, 0};
  widen(range, to_float(__hmin_nan(low.x, low.y)));
  widen(range, to_float(__hmax_nan(high.x, high.y)));
  return range;
}

// The code of one element.
template <int kBits>
__device__ uint32_t affine_code(float scale, float zero, float x) {
  if (!(scale > 0.0F)) return 0;
  const float code = __fadd_rn(rintf(__fdiv_rn(x, scale)), zero);
  return static_cast<uint32_t>(fminf(fmaxf(code, 0.0F), static_cast<float>((1 << kBits) - 1)));
}

// Scale and zero of a group, as ops/affine.h defines them, and how its elements become codes. Adding a large enough
// float rounds a quotient to an integer, halves to even, which then stands in the low bits of the sum.
template <class S, int kBits>
struct AffineGroup {
  static constexpr float kLevels = (1 << kBits) - 1;
  static constexpr float kRounding = 0x1.8p55F;  // its last bit is 2^32, the unit of Quotient

  float scale;  // rounded to the dtype of the scales
  float zero;
  Quotient quotient;

  __device__ explicit AffineGroup(const Range& range) : scale(scale_of(range)), zero(0.0F), quotient(scale) {
    if (scale > 0.0F) zero = fminf(rintf(__fdiv_rn(__int_as_float(range.bottom), scale)), kLevels);
  }

  __device__ static float scale_of(const Range& range) {
    const bool finite = max(range.top, range.bottom) < static_cast<int>(kInfinityBits);
    const float width =
        __fadd_rn(__fdiv_rn(__int_as_float(range.top), kLevels), __fdiv_rn(__int_as_float(range.bottom), kLevels));
    const float rounded = to_float(from_float<S>(width));
    return finite && rounded < __uint_as_float(kInfinityBits) ? rounded : quiet_nan();
  }

  template <class Values>
  __device__ PackedRun<kBits> encode(const Values& values) const {
    constexpr int kPerWord = 32 / kBits;
    constexpr uint32_t kOnes = kBits == 4 ? 0x11111111U : 0x01010101U;
    const float lowest = __fsub_rn(kRounding, zero * 0x1p32F);
    const float highest = __fadd_rn(lowest, kLevels * 0x1p32F);
    float x[kRun];
#pragma unroll
    for (int i = 0; i < kRun; ++i) x[i] = values[i];
    if (quotient.factor() != 1.0F) {
#pragma unroll
      for (int i = 0; i < kRun; ++i) x[i] *= quotient.factor();
    }
    PackedRun<kBits> packed;
#pragma unroll
    for (int w = 0; w < kRun / kPerWord; ++w) {
      uint32_t word = 0;
#pragma unroll
      for (int k = 0; k < kPerWord; ++k) {
        const float rounded = __fadd_rn(quotient(x[w * kPerWord + shifted_in<kBits>(k)]), kRounding);
        word = (word << kBits) + __float_as_uint(fminf(fmaxf(rounded, lowest), highest));
      }
      packed.words[w] = scale > 0.0F ? word - kOnes * __float_as_uint(lowest) : 0;
    }
    return packed;
  }
};

}  // namespace qbits::cuda
