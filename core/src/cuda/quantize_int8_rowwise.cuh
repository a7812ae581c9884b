#pragma once

#include <bit>

#include "cuda/linear_4bit_stream_ptx.cuh"
#include "cuda/quantize_int8_rowwise.h"
#include "cuda/quotient.cuh"
#include "ops/ceil_div.h"

// The parts of the row-wise quantizer: magnitudes of runs, their codes, marks of outliers.

namespace qbits::cuda::rowwise {

inline constexpr int kRun = 8;  // elements a thread takes at a time

// What |x| is compared with: the least number of T that is at least the threshold.
template <class T>
struct Threshold {
  float value = 0;
  uint32_t word = 0;  // of a 16-bit T, twice

  __device__ Pair<T> pair() const { return reinterpret_cast<const Pair<T>&>(word); }
};

template <class T>
Threshold<T> threshold_of(float value) {
  const auto twice = [](uint32_t bits) { return bits << 16 | bits; };
  if constexpr (std::is_same_v<T, float>) {
    return {.value = value};
  } else if constexpr (std::is_same_v<T, __half>) {
    return {.word = twice(__half_as_ushort(__float2half_ru(value)))};
  } else {
    return {.word = twice((std::bit_cast<uint32_t>(value) + 0xffff) >> 16)};
  }
}

template <class T>
struct RowwiseArgs {
  const T* x;
  int64_t rows;
  int64_t cols;
  int64_t pitch;  // of codes
  Threshold<T> threshold;
  int8_t* codes;
  float* scales;
  int32_t* columns;
  int32_t* count;
  T* values;             // [rows, kOutlierValues] or null
  bool product_follows;  // it may start early
  int group;             // threads that have a row
  uint8_t* marks;        // [markers, mark_pitch]: a bit for each column that holds an outlier in a block's rows
  int markers;
  int64_t mark_pitch;
};

// Codes of a row: 127 x / scale to the nearest integer, halves to even.
struct Int8Encoder {
  Quotient quotient;
  bool all_zero;

  __device__ explicit Int8Encoder(float scale) : quotient(scale), all_zero(!(scale > 0.0F)) {}

  template <class T>
  __device__ uint2 operator()(const Run<T, kRun>& run) const {
    float x[kRun];
#pragma unroll
    for (int k = 0; k < kRun; ++k) x[k] = run[k];
    if (quotient.factor() != 1.0F) {
#pragma unroll
      for (int k = 0; k < kRun; ++k) x[k] *= quotient.factor();
    }
    uint32_t bits[kRun];
    // At 1.5 * 2^23 the spacing of floats is 1: the fused sum is rounded to an integer, once.
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      bits[k] = __float_as_uint(__fmaf_rn(quotient(x[k]), 127.0F * 0x1p-32F, 0x1.8p23F));
    }
    const auto pack = [&](int k) {
      return __byte_perm(__byte_perm(bits[k], bits[k + 1], 0x40), __byte_perm(bits[k + 2], bits[k + 3], 0x40), 0x5410);
    };
    return all_zero ? make_uint2(0, 0) : make_uint2(pack(0), pack(4));
  }
};

// Run i.. of a row of x; 0 behind its end.
template <bool kAligned, class T>
__device__ Run<T, kRun> load_row(const T* x, uint32_t i, uint32_t cols) {
  if (i >= cols) return {};
  if constexpr (kAligned) return load_run<kRun>(x + i, 0);
  return load_run<kRun>(x, i, static_cast<int>(min(cols - i, uint32_t{kRun})));
}

// Codes of run i.. of a row.
template <bool kAligned>
__device__ void store_codes(int8_t* to, uint32_t i, uint32_t cols, uint2 codes) {
  if constexpr (kAligned) {
    *reinterpret_cast<uint2*>(to + i) = codes;
  } else {
    for (uint32_t k = 0; k < min(cols - i, uint32_t{kRun}); ++k) {
      to[i + k] = static_cast<int8_t>((k < 4 ? codes.x : codes.y) >> k % 4 * 8);
    }
  }
}

__device__ inline uint32_t warp_max(uint32_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(~0U, value);
#else
  for (int step = 1; step < 32; step *= 2) value = max(value, __shfl_xor_sync(~0U, value, step));
  return value;
#endif
}

// The largest of a value of each of a group of threads, at most 1024; wait() is a barrier among them.
template <class Wait>
__device__ uint32_t group_max(uint32_t value, Wait wait, int warp, int warps, uint32_t (&shared)[32]) {
  value = warp_max(value);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  wait();  // the values before have been read
  if (lane == 0) shared[warp] = value;
  wait();
  return warp_max(lane < warps ? shared[lane] : 0);
}

// A magnitude from its bits, NaN for infinity and NaN.
__device__ inline float finite_scale(uint32_t bits) {
  return bits < kInfinityBits ? __uint_as_float(bits) : quiet_nan();
}

// The bits of the largest |x| of a run: their order is that of magnitudes, with infinity and NaN on top.
template <class T>
__device__ uint32_t largest_magnitude(const Run<T, kRun>& run) {
  if constexpr (sizeof(T) == 2) {
    Pair<T> largest = __habs2(run.pair(0));
#pragma unroll
    for (int k = 1; k < kRun / 2; ++k) largest = __hmax2_nan(largest, __habs2(run.pair(k)));
    return __float_as_uint(fabsf(to_float(__hmax_nan(largest.x, largest.y))));
  } else {
    uint32_t largest = 0;
#pragma unroll
    for (int k = 0; k < kRun; ++k) largest = max(largest, __float_as_uint(fabsf(run[k])));
    return largest;
  }
}

// Which elements of runs are outliers.
template <class T>
class Marks {
 public:
  // The bits of the largest |x| below the threshold; marks the others. The order of bits is that of magnitudes.
  __device__ uint32_t add(const Run<T, kRun>& run, const Threshold<T>& threshold) {
    if constexpr (sizeof(T) == 2) {
      Pair<T> largest{};
#pragma unroll
      for (int k = 0; k < kRun / 2; ++k) {
        const Pair<T> magnitude = __habs2(run.pair(k));
        const uint32_t outlier = __hge2_mask(magnitude, threshold.pair());
        words_[k] |= outlier;
        const uint32_t below = reinterpret_cast<const uint32_t&>(magnitude) & ~outlier;
        largest = __hmax2_nan(largest, reinterpret_cast<const Pair<T>&>(below));
      }
      return __float_as_uint(to_float(__hmax_nan(largest.x, largest.y)));
    } else {
      uint32_t largest = 0;
#pragma unroll
      for (int k = 0; k < kRun; ++k) {
        const float magnitude = fabsf(run[k]);
        const bool outlier = magnitude >= threshold.value;
        words_[0] |= outlier ? 1U << k : 0;
        largest = max(largest, outlier ? 0 : __float_as_uint(magnitude));
      }
      return largest;
    }
  }

  // A bit for each element.
  __device__ uint32_t bits() const {
    if constexpr (sizeof(T) == 2) {
      const auto four = [&](int k) {
        return (__byte_perm(words_[k], words_[k + 1], 0x6420) & 0x08040201U) * 0x01010101U >> 24;
      };
      return four(0) | four(2) << 4;
    } else {
      return words_[0];
    }
  }

 private:
  uint32_t words_[sizeof(T) == 2 ? kRun / 2 : 1] = {};  // of 16-bit types all bits of an element
};

}  // namespace qbits::cuda::rowwise
