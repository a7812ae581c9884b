#pragma once

#include "cuda/quotient.cuh"
#include "ops/ceil_div.h"

// The parts of the row-wise quantizer: magnitudes of runs, their codes, the places of outlier columns in a list.

namespace qbits::cuda::rowwise {

inline constexpr int kRun = 8;  // elements a thread takes at a time

template <class T>
struct RowwiseArgs {
  const T* x;
  int64_t rows;
  int64_t cols;
  int64_t pitch;  // of codes
  float threshold;
  int8_t* codes;
  float* scales;
  int32_t* columns;
  int32_t* count;
  T* values;             // [rows, kOutlierValues] or null
  bool product_follows;  // it may start early
  uint8_t* flags;        // [chunks, flag_pitch]: whether a column holds an outlier
  uint32_t* magnitudes;  // [rows, strips]: bits of the largest below the threshold
  int64_t flag_pitch;
  int64_t strips;
  int chunks;
  int64_t chunk_rows;
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

// The same of the elements below the threshold; marks the others.
template <class T>
__device__ uint32_t mark_outliers(const Run<T, kRun>& run, float threshold, uint32_t& marks) {
  uint32_t largest = largest_magnitude(run);
  if (__uint_as_float(largest) < threshold) return largest;
  largest = 0;
#pragma unroll
  for (int k = 0; k < kRun; ++k) {
    const float magnitude = fabsf(run[k]);
    if (magnitude >= threshold) {
      marks |= 1U << k;
    } else {
      largest = max(largest, __float_as_uint(magnitude));
    }
  }
  return largest;
}

// A byte for each of eight marks.
__device__ inline uint2 bytes_of(uint32_t marks) {
  uint2 flags = make_uint2(0, 0);
#pragma unroll
  for (int k = 0; k < kRun; ++k) (k < 4 ? flags.x : flags.y) |= (marks >> k & 1) << k % 4 * 8;
  return flags;
}

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
