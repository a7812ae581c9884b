#pragma once

#include "cuda/linear_int8_fused_parts.cuh"

// How the computing warps of the fused kernel quantize x, as quantize_int8_rowwise does: each block its share of the
// depth, which the threads keep in registers from the look for magnitudes and outliers until they are encoded.

namespace qbits::cuda {

__device__ inline void max_shared(uint32_t address, uint32_t value) {
  atomicMax(static_cast<uint32_t*>(__cvta_shared_to_generic(address)), value);
}
__device__ inline void or_shared(uint32_t address, uint32_t value) {
  atomicOr(static_cast<uint32_t*>(__cvta_shared_to_generic(address)), value);
}

template <class Shape>
class Int8FusedQuantizer {
 public:
  using T = typename Shape::T;

  __device__ Int8FusedQuantizer(const Int8FusedArgs<T>& args, Int8Share share, uint32_t window)
      : args_(args),
        share_(share),
        window_(window),
        warp_(static_cast<int>(threadIdx.x) / 32 - 4),
        lane_(static_cast<int>(threadIdx.x) % 32) {
#pragma unroll
    for (int q = 0; q < kUnits; ++q) {
      runs_[q] = {};
      const int k = (share.begin + stage(q)) * Shape::kDepth + column();
      if (stage(q) < share.count && row(q) < args.m && k < args.k) {
        runs_[q] = load_run<kRun>(args.x + int64_t{row(q)} * args.k, k);
      }
    }
  }

  // The largest magnitudes of rows, and the columns with outliers, into shared memory.
  __device__ void look() const {
    uint32_t largest[kRows] = {};
#pragma unroll
    for (int q = 0; q < kUnits; ++q) {
      if (stage(q) >= share_.count) break;
      if constexpr (Shape::kOutliers) {
        rowwise::Marks<T> marks;
        largest[q % kRows] = max(largest[q % kRows], marks.add(runs_[q], args_.threshold));
        const uint32_t bits = rowwise::bits_of(marks.bytes());
        if (bits != 0) or_shared(window_ + Shape::kMarks + stage(q) * 16 + lane_ % 16 / 4 * 4, bits << lane_ % 4 * 8);
      } else {
        largest[q % kRows] = max(largest[q % kRows], rowwise::largest_magnitude(runs_[q]));
      }
    }
#pragma unroll
    for (int q = 0; q < kRows; ++q) {
#pragma unroll
      for (int step = 1; step < 16; step *= 2) largest[q] = max(largest[q], __shfl_xor_sync(~0U, largest[q], step));
      if (lane_ % 16 == 0) max_shared(window_ + Shape::kMagnitudes + row(q) * 4, largest[q]);
    }
  }

  // Scales of all rows, from the magnitudes in all blocks of the cluster.
  __device__ void find_scales() const {
    const int i = warp_ * 32 + lane_;
    if (i >= Shape::kColumns) return;
    const uint32_t magnitude = window_ + Shape::kMagnitudes + i * 4;
    uint32_t largest = 0;
    for (int rank = 0; rank < args_.splits; ++rank) {
      largest = max(largest, load_cluster_word(magnitude, static_cast<uint32_t>(rank)));
    }
    store_shared(window_ + Shape::kScales + i * 4, rowwise::finite_scale(largest));
  }

  // Codes, as wgmma wants them, and x in the first outlier columns.
  __device__ void encode(const Int8OutlierOrder& order) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int m = row(i);
      const rowwise::Int8Encoder encoder(load_shared<float>(window_ + Shape::kScales + m * 4));
#pragma unroll
      for (int q = i; q < kUnits; q += kRows) {
        const int s = stage(q);
        if (s >= share_.count) break;
        uint2 codes = encoder(runs_[q]);
        if constexpr (Shape::kOutliers) {
          const int before = order.before(s);
          const uint32_t bits = load_shared<uint8_t>(window_ + Shape::kMarks + s * 16 + lane_ % 16);
          if (bits != 0) {
            const uint2 marks = rowwise::bytes_of(bits);
            codes.x &= ~marks.x;
            codes.y &= ~marks.y;
            if (m < args_.m) leave_outliers(runs_[q], m, bits, before + order.within(s, column()));
          }
        }
        const int chunk = column() / 16;
        const uint32_t tile = window_ + s * (Shape::kColumns * 128);
        if (m < args_.m) store_shared(tile + m * 128 + (chunk ^ (m & 7)) * 16 + column() % 16, codes);
      }
    }
  }

 private:
  static constexpr int kRun = rowwise::kRun;
  // A unit is two rows in a stage, 16 lanes each. Which rows repeats with every four of a warp's units.
  static constexpr int kUnits = 32;
  static constexpr int kRows = 4;

  __device__ int unit(int q) const { return q * 8 + warp_; }
  __device__ int stage(int q) const { return unit(q) >> args_.log_pairs; }
  __device__ int row(int q) const { return (unit(q) & ((1 << args_.log_pairs) - 1)) * 2 + lane_ / 16; }
  __device__ int column() const { return lane_ % 16 * kRun; }

  __device__ void leave_outliers(const Run<T, kRun>& run, int m, uint32_t bits, int at) const {
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      if ((bits >> k & 1) == 0) continue;
      const auto value = static_cast<uint16_t>(run.words[k / 2] >> k % 2 * 16);
      if (at < kOutlierValues) store_shared(window_ + Shape::kOutlierX + outlier_place(m, at), value);
      ++at;
    }
  }

  const Int8FusedArgs<T>& args_;
  Int8Share share_;
  uint32_t window_;
  int warp_;
  int lane_;
  Run<T, kRun> runs_[kUnits];
};

}  // namespace qbits::cuda
