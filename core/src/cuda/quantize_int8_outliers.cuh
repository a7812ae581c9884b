#pragma once

#include "cuda/quantize_int8_rowwise.cuh"

// What follows the encoding of rows with a threshold: the columns that any thread block has marked, their list, codes 0
// in them, and x in the first of them.

namespace qbits::cuda::rowwise {

// Columns looked at together.
inline constexpr int kSegment = 8192;
inline constexpr int kSegmentWords = kSegment / 32;

struct OutlierShared {
  uint32_t marks[kSegmentWords];
  int32_t ranks[kSegmentWords];
  int32_t count;               // of columns in the segment
  uint16_t columns[kSegment];  // theirs, in the segment
};

// Adds the marks of all blocks to the segment's, which are clear; all threads take part, a vector each.
template <class T>
__device__ void merge_marks(const RowwiseArgs<T>& args, int64_t begin, OutlierShared& shared) {
  constexpr int kVectors = kSegmentWords / 4;
  constexpr int kBatch = 8;  // loads in flight
  const int thread = static_cast<int>(threadIdx.x);
  const int vector = thread % kVectors;
  const int64_t at = begin / 8 + vector * 16;
  const int step = static_cast<int>(blockDim.x) / kVectors;
  uint4 marks = make_uint4(0, 0, 0, 0);
#pragma unroll 1
  for (int first = thread / kVectors; first < args.markers && at < args.mark_pitch; first += kBatch * step) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i * step >= args.markers) continue;
      const uint4 own = *reinterpret_cast<const uint4*>(args.marks + (first + i * step) * args.mark_pitch + at);
      marks.x |= own.x, marks.y |= own.y, marks.z |= own.z, marks.w |= own.w;
    }
  }
  uint32_t* const to = shared.marks + vector * 4;
  if (marks.x != 0) atomicOr(to, marks.x);
  if (marks.y != 0) atomicOr(to + 1, marks.y);
  if (marks.z != 0) atomicOr(to + 2, marks.z);
  if (marks.w != 0) atomicOr(to + 3, marks.w);
}

__device__ inline void clear_marks(OutlierShared& shared) {
  if (threadIdx.x < kSegmentWords) shared.marks[threadIdx.x] = 0;
  __syncthreads();
}

// How many marked columns of the segment come before each word. All lanes of a warp together.
__device__ inline void rank_marks(OutlierShared& shared) {
  constexpr int kOwn = kSegmentWords / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int own = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) own += __popc(shared.marks[lane * kOwn + i]);
  int up_to = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0U, up_to, step);
    if (lane >= step) up_to += other;
  }
  int before = up_to - own;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    shared.ranks[lane * kOwn + i] = before;
    before += __popc(shared.marks[lane * kOwn + i]);
  }
  if (lane == 31) shared.count = up_to;
}

// By all threads of a block, at least 256, for rows `begin` to `end`. Block 0 writes the list. The marks of the first
// segment are clear, or, where `marked`, there.
template <class T>
__device__ void take_out_columns(const RowwiseArgs<T>& args, int64_t begin, int64_t end, bool marked,
                                 OutlierShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  const auto threads = static_cast<int>(blockDim.x);
  int32_t before = 0;
#pragma unroll 1
  for (int64_t first = 0; first < args.cols; first += kSegment) {
    if (first > 0) clear_marks(shared);
    if (!marked) merge_marks(args, first, shared);
    __syncthreads();
    if (thread < 32) rank_marks(shared);
    __syncthreads();
    const int count = shared.count;
    if (thread < kSegmentWords) {
      int at = shared.ranks[thread];
#pragma unroll 1
      for (uint32_t bits = shared.marks[thread]; bits != 0; bits &= bits - 1, ++at) {
        const int column = thread * 32 + __ffs(static_cast<int>(bits)) - 1;
        shared.columns[at] = static_cast<uint16_t>(column);
        if (blockIdx.x == 0) args.columns[before + at] = static_cast<int32_t>(first) + column;
      }
    }
    __syncthreads();
    // A warp for a row.
#pragma unroll 1
    for (int64_t row = begin + thread / 32; row < end; row += threads / 32) {
#pragma unroll 1
      for (int j = thread % 32; j < count; j += 32) {
        const int64_t column = first + shared.columns[j];
        args.codes[row * args.pitch + column] = 0;
        if (args.values != nullptr && before + j < kOutlierValues) {
          args.values[row * kOutlierValues + before + j] = args.x[row * args.cols + column];
        }
      }
    }
    before += count;
    __syncthreads();
  }
  if (args.values != nullptr && before < kOutlierValues) {
    for (int64_t i = begin * kOutlierValues + thread; i < end * kOutlierValues; i += threads) {
      if (i % kOutlierValues >= before) args.values[i] = from_float<T>(0.0F);
    }
  }
  if (blockIdx.x == 0) {
    // linear_int8 looks at no more.
    const int64_t columns = args.values != nullptr ? min(args.cols, int64_t{kOutlierValues}) : args.cols;
    for (int64_t i = int64_t{before} + thread; i < columns; i += threads) args.columns[i] = -1;
    if (thread == 0) *args.count = before;
  }
}

}  // namespace qbits::cuda::rowwise
