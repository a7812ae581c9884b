#pragma once

#include <cstdint>

#include "cuda/linear_4bit_wgmma_ptx.cuh"

namespace qbits::cuda {

// Adds to sums of fragments the bias of their two rows, outputs `first` and `second` of `outputs`.
template <class T, int kSums>
__device__ void add_bias(const void* bias, int64_t first, int64_t second, int64_t outputs, float (&sums)[kSums]) {
  const T* const values = static_cast<const T*>(bias);
  const float add[2] = {first < outputs ? to_float(values[first]) : 0.0F,
                        second < outputs ? to_float(values[second]) : 0.0F};
#pragma unroll
  for (int i = 0; i < kSums; ++i) sums[i] += add[i / 2 % 2];
}

// Rounds a warpgroup's sums of kRows rows of out by 64 columns, fragments from `sums` on, and leaves them transposed in
// a slab, whose rows are `pitch` bytes apart, as SlabWriter and bulk tensor copies with 128-byte swizzle read them.
template <class T, int kRows>
__device__ void put_in_slab(const float* sums, uint32_t slab, int pitch, int thread) {
  const int warp = thread / 32;
  const int lane = thread % 32;
#pragma unroll
  for (int i = 0; i < kRows / 16; ++i) {
    uint32_t packed[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) packed[j] = round_pair<T>(sums[i * 8 + j * 2], sums[i * 8 + j * 2 + 1]);
    const int m = (i * 2 + lane / 16) * 8 + lane % 8;
    const int chunk = warp * 2 + (lane / 8 & 1);
    store_matrices_transposed(slab + m * pitch + (chunk ^ (m & 7)) * 16, packed);
  }
}

// Writes rows of out [m, outputs] from slabs in shared memory, which hold 64 of their columns, kPitch bytes from row to
// row: eight threads of a warpgroup take a row, 16 bytes each, and sixteen rows at a time. Few instructions, for
// nothing is multiplied meanwhile.
template <class T, int kPitch>
class SlabWriter {
  struct Nothing {
    __device__ void operator()() const {}
  };

 public:
  // Of the rows from `first` to `end`, and of columns from `column` on.
  __device__ SlabWriter(void* out, int64_t outputs, int64_t first, int64_t end, int64_t column, int thread)
      : place_(thread / 8 * kPitch + (thread % 8 ^ (thread / 8 & 7)) * 16),
        stride_(16 * outputs),
        whole_(outputs % 8 == 0) {
    const int64_t row = first + thread / 8;
    column += thread % 8 * 8;
    to_ = static_cast<T*>(out) + row * outputs + column;
    const int64_t inside = outputs - column;
    inside_ = inside < 8 ? static_cast<int>(inside) : 8;
    left_ = inside > 0 && row < end ? static_cast<int>(end - row) : 0;
  }

  // The next kTimes times sixteen rows. While they come, `meanwhile` is done, by whole warps.
  template <int kTimes, class F = Nothing>
  __device__ void write(uint32_t slab, const F& meanwhile = {}) {
    const uint32_t from = slab + place_;
    constexpr int kStep = 16 * kPitch;
    if (whole_) {
      uint4 parts[kTimes];
#pragma unroll
      for (int i = 0; i < kTimes; ++i) parts[i] = load_shared<uint4>(from + i * kStep);
      meanwhile();
#pragma unroll
      for (int i = 0; i < kTimes; ++i) {
        if (left_ > i * 16) *reinterpret_cast<uint4*>(to_ + i * stride_) = parts[i];
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < kTimes * 8; ++i) {
        if (left_ <= i / 8 * 16 || i % 8 >= inside_) continue;
        reinterpret_cast<uint16_t*>(to_ + i / 8 * stride_)[i % 8] =
            load_shared<uint16_t>(from + i / 8 * kStep + i % 8 * 2);
      }
      __syncwarp();
      meanwhile();
    }
    left_ -= kTimes * 16;
    to_ += kTimes * stride_;
  }

 private:
  uint32_t place_;  // of the thread's 16 bytes of the first rows
  T* to_;
  int64_t stride_;
  int left_;    // rows, from the next on
  int inside_;  // elements of the 16 bytes
  bool whole_;  // rows begin at 16 bytes
};

}  // namespace qbits::cuda
