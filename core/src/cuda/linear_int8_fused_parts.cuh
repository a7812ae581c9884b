#pragma once

#include "cuda/linear_int8_wgmma_outliers.cuh"
#include "cuda/quantize_int8_rowwise.cuh"

// What the warps of a block of the fused kernel of linear_int8 agree on.

namespace qbits::cuda {

template <class T>
struct Int8FusedArgs {
  CUtensorMap weight;
  const T* x;
  const int8_t* codes;
  const float* scales;
  const T* bias;
  T* out;
  rowwise::Threshold<T> threshold;
  int m;
  int n;
  int k;
  int stages;  // of the depth
  int splits;
  int log_pairs;  // of the pairs of rows that x has, rounded up to a power of two
};

// kOutliers: there is a threshold.
template <class TOf, int kColumnsOf, bool kOutliersOf>
struct Int8FusedShape {
  using T = TOf;
  static constexpr int kColumns = kColumnsOf;
  static constexpr bool kOutliers = kOutliersOf;
  static constexpr int kRows = LinearInt8Wgmma::kRows;
  static constexpr int kDepth = LinearInt8Wgmma::kDepth;
  static constexpr int kSums = kColumns / 2;  // of a thread
  static constexpr int kComputeThreads = 256;
  static constexpr int kThreads = kComputeThreads + 128;
  static constexpr int kOutlierThreads = 96;
  static constexpr int kReaders = kComputeThreads / 32 + (kOutliers ? kOutlierThreads / 32 : 0);  // warps
  static constexpr int kMaxStages = LinearInt8Fused::max_stages(kColumns);
  static constexpr int kStageBytes = kRows * kDepth;

  // Shared memory: all codes of x, a tile of rows of 128 bytes for each stage; a ring of the weight's, which also holds
  // sums of a cluster; tiles of outlier columns of the weight and of x; barriers; for each row of x its magnitude in
  // this block and its scale; for each column of the block's depth whether it has an outlier, a bit.
  static constexpr int kCodeBytes = kMaxStages * kColumns * kDepth;
  static constexpr int kOutlierBytes = kOutliers ? (kRows + kColumns) * 128 : 0;
  static constexpr int kRest = 2048;
  static constexpr int kRing = kCodeBytes;
  static constexpr int kStages = (227 * 1024 - 1024 - kRest - kCodeBytes - kOutlierBytes) / kStageBytes;
  static constexpr int kOutlierWeight = kRing + kStages * kStageBytes;
  static constexpr int kOutlierX = kOutlierWeight + (kOutliers ? kRows * 128 : 0);
  static constexpr int kFull = kOutlierWeight + kOutlierBytes;
  static constexpr int kEmpty = kFull + kStages * 8;
  static constexpr int kPicked = kEmpty + kStages * 8;
  static constexpr int kMagnitudes = kPicked + 16;
  static constexpr int kScales = kMagnitudes + kColumns * 4;
  static constexpr int kMarks = kScales + kColumns * 4;
  static constexpr int kBytes = kMarks + kMaxStages * 16;
  static constexpr int kSharedBytes = kBytes + 1024;
  static constexpr int kSumBytes = kComputeThreads * kSums * 4;  // of integers, and as much of floats
  static_assert(kBytes <= kFull + kRest && 2 * kSumBytes <= kStages * kStageBytes);
};

// A block's share of the depth, in stages.
struct Int8Share {
  int begin;
  int count;

  template <class T>
  __device__ explicit Int8Share(const Int8FusedArgs<T>& args) {
    const int split = static_cast<int>(blockIdx.x) % args.splits;
    begin = static_cast<int>(int64_t{args.stages} * split / args.splits);
    count = static_cast<int>(int64_t{args.stages} * (split + 1) / args.splits) - begin;
  }
};

// Bits of the columns of a stage that have outliers, in order.
__device__ inline uint4 stage_marks(uint32_t marks, int stage) { return load_shared<uint4>(marks + stage * 16); }
__device__ inline int count_bits(uint4 v) { return __popc(v.x) + __popc(v.y) + __popc(v.z) + __popc(v.w); }
__device__ inline uint32_t word_of(uint4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Where the outlier columns of a share's stages stand in their order. All lanes of a warp make it together.
class Int8OutlierOrder {
 public:
  __device__ Int8OutlierOrder(uint32_t marks, int stages) : marks_(marks) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int own = lane < stages ? count_bits(stage_marks(marks, lane)) : 0;
    int up_to = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0U, up_to, step);
      if (lane >= step) up_to += other;
    }
    before_ = up_to - own;
    count_ = __shfl_sync(~0U, up_to, 31);
  }

  __device__ int count() const { return count_; }
  // Of columns before a stage; all lanes ask together.
  __device__ int before(int stage) const { return __shfl_sync(~0U, before_, stage); }
  // Of columns of a stage before its `column`.
  __device__ int within(int stage, int column) const {
    const uint4 words = stage_marks(marks_, stage);
    int rank = __popc(word_of(words, column / 32) & ((1U << column % 32) - 1));
    for (int i = 0; i < column / 32; ++i) rank += __popc(word_of(words, i));
    return rank;
  }

 private:
  uint32_t marks_;
  int before_;  // of the lane's stage
  int count_;
};

}  // namespace qbits::cuda
