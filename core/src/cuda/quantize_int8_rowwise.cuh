#pragma once

#include <bit>

#include "cuda/quotient.cuh"
#include "ops/ceil_div.h"

// The parts of the row-wise quantizer: magnitudes of runs, their codes, the places of outlier columns in a list.

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
  uint8_t* flags;        // [chunks, flag_pitch]: 255 for a column that holds an outlier, else 0
  uint32_t* magnitudes;  // [rows, strips]: bits of the largest below the threshold
  int64_t flag_pitch;
  int64_t strips;
  int chunks;
  int64_t chunk_rows;
};

// Codes of a row: 127 x / scale to the nearest integer, halves to even, x / scale being rounded first.
struct Int8Encoder {
  // At 1.5 * 2^23 the spacing of floats is 1: a fused sum is rounded to an integer, once.
  static constexpr float kIntegers = 0x1.8p23F;
  static constexpr float kMinScale = 0x1p-100F;  // for which 127 / scale is no subnormal number and not infinite

  Quotient quotient;
  float factor;
  float sure;  // up to this distance from an integer the product with the factor rounds as the quotient does
  bool all_zero;

  // The product errs by 127 / 2^24 and the quotient by as much: 1.6e-5 together.
  __device__ explicit Int8Encoder(float scale)
      : quotient(scale),
        factor(127.0F / scale),
        sure(scale > 0.0F && scale < kMinScale ? -1.0F : 0.5F - 0x1p-15F),
        all_zero(!(scale > 0.0F)) {}

  // Codes of elements beyond the scale, which are outliers', are arbitrary.
  template <class T>
  __device__ uint2 operator()(const Run<T, kRun>& run) const {
    uint32_t bits[kRun];
    float distance = 0.0F;
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      const float rounded = __fmaf_rn(run[k], factor, kIntegers);
      distance = fmaxf(distance, fabsf(__fmaf_rn(run[k], factor, kIntegers - rounded)));
      bits[k] = __float_as_uint(rounded);
    }
    if (!(distance <= sure)) exact(run, bits);
    const auto pack = [&](int k) {
      return __byte_perm(__byte_perm(bits[k], bits[k + 1], 0x40), __byte_perm(bits[k + 2], bits[k + 3], 0x40), 0x5410);
    };
    return all_zero ? make_uint2(0, 0) : make_uint2(pack(0), pack(4));
  }

 private:
  template <class T>
  __device__ void exact(const Run<T, kRun>& run, uint32_t (&bits)[kRun]) const {
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      bits[k] = __float_as_uint(__fmaf_rn(quotient(run[k] * quotient.factor()), 127.0F * 0x1p-32F, kIntegers));
    }
  }
};

// Run i.. of a row of x; 0 behind its end.
template <bool kAligned, class T>
__device__ Run<T, kRun> load_row(const RowwiseArgs<T>& args, int64_t row, int64_t i) {
  const T* const x = args.x + row * args.cols;
  if constexpr (kAligned) return load_run<kRun>(x, i);
  return load_run<kRun>(x, i, static_cast<int>(min(args.cols - i, int64_t{kRun})));
}

__device__ inline uint32_t warp_max(uint32_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(~0U, value);
#else
  for (int step = 1; step < 32; step *= 2) value = max(value, __shfl_xor_sync(~0U, value, step));
  return value;
#endif
}

// The largest of a value of each of the block's threads.
__device__ inline uint32_t block_max(uint32_t value, uint32_t* shared) {
  value = warp_max(value);
  const int warps = static_cast<int>(blockDim.x) / 32;
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  for (int i = 0; i < warps; ++i) value = max(value, shared[i]);
  return value;
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

// Outliers among the elements of a run: all bits of each of them, as the elements lie.
template <class T>
struct Marks {
  static constexpr int kWords = kRun * sizeof(T) / 4;
  uint32_t words[kWords] = {};

  // The bits of the largest |x| below the threshold; marks the others. The order of bits is that of magnitudes.
  __device__ uint32_t add(const Run<T, kRun>& run, const Threshold<T>& threshold) {
    if constexpr (sizeof(T) == 2) {
      Pair<T> largest{};
#pragma unroll
      for (int k = 0; k < kWords; ++k) {
        const Pair<T> magnitude = __habs2(run.pair(k));
        const uint32_t outlier = __hge2_mask(magnitude, threshold.pair());
        words[k] |= outlier;
        const uint32_t below = reinterpret_cast<const uint32_t&>(magnitude) & ~outlier;
        largest = __hmax2_nan(largest, reinterpret_cast<const Pair<T>&>(below));
      }
      return __float_as_uint(to_float(__hmax_nan(largest.x, largest.y)));
    } else {
      uint32_t largest = 0;
#pragma unroll
      for (int k = 0; k < kWords; ++k) {
        const float magnitude = fabsf(run[k]);
        const uint32_t outlier = magnitude >= threshold.value ? ~0U : 0U;
        words[k] |= outlier;
        largest = max(largest, __float_as_uint(magnitude) & ~outlier);
      }
      return largest;
    }
  }

  // A byte for each element, all bits or none.
  __device__ uint2 bytes() const {
    if constexpr (sizeof(T) == 2) {
      return make_uint2(__byte_perm(words[0], words[1], 0x6420), __byte_perm(words[2], words[3], 0x6420));
    } else {
      const auto four = [&](int k) {
        return __byte_perm(__byte_perm(words[k], words[k + 1], 0x40), __byte_perm(words[k + 2], words[k + 3], 0x40),
                           0x5410);
      };
      return make_uint2(four(0), four(4));
    }
  }
};

// The same as eight bits, and back.
__device__ inline uint32_t bits_of(uint2 bytes) {
  const auto four = [](uint32_t word) { return (word & 0x08040201U) * 0x01010101U >> 24; };
  return four(bytes.x) | four(bytes.y) << 4;
}
__device__ inline uint2 bytes_of(uint32_t bits) {
  const auto four = [](uint32_t b) { return (b * 0x00204081U & 0x01010101U) * 0xff; };
  return make_uint2(four(bits & 15), four(bits >> 4));
}

// How many elements those bytes mark, and whether the k-th.
__device__ inline int count_marks(uint2 bytes) { return (__popc(bytes.x) + __popc(bytes.y)) / 8; }
__device__ inline bool is_marked(uint2 bytes, int k) { return ((k < 4 ? bytes.x : bytes.y) >> k % 4 * 8 & 1) != 0; }

// Where outlier columns stand in their list: by scans over runs of all threads of the block, in the order of columns.
class Ranks {
 public:
  __device__ explicit Ranks(uint64_t* shared) : shared_(shared) {}

  // The ranks of the first of `found` columns that this thread has in each of the next four runs.
  __device__ void next(const int (&found)[4], int32_t (&ranks)[4]) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    uint64_t own = 0;  // 16 bits for each run: no more than 8 columns of 256 threads
#pragma unroll
    for (int j = 0; j < 4; ++j) own |= uint64_t{static_cast<uint32_t>(found[j])} << 16 * j;
    if (__syncthreads_or(own != 0) == 0) return;
    uint64_t up_to = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = __shfl_up_sync(~0U, up_to, step);
      if (lane >= step) up_to += other;
    }
    if (lane == 31) shared_[warp] = up_to;
    __syncthreads();
    uint64_t before = up_to - own;
    uint64_t all = 0;
    for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) {
      if (w < warp) before += shared_[w];
      all += shared_[w];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      ranks[j] = count_ + static_cast<int32_t>(before >> 16 * j & 0xffff);
      count_ += static_cast<int32_t>(all >> 16 * j & 0xffff);
    }
  }
  __device__ int32_t count() const { return count_; }

 private:
  uint64_t* shared_;
  int32_t count_ = 0;
};

}  // namespace qbits::cuda::rowwise
