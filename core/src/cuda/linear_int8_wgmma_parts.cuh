#pragma once

#include "cuda/linear_int8_kernels.h"
#include "cuda/linear_int8_wgmma_mma.cuh"
#include "cuda/quantize_int8_rowwise.h"

// What the warps of a block of the wgmma kernel of linear_int8 agree on.

namespace qbits::cuda {

struct Int8WgmmaArgs {
  CUtensorMap x;  // codes
  CUtensorMap weight;
  CUtensorMap outliers;  // of x, the first columns
  const float* x_scales;
  const float* scales;
  const void* bias;
  void* out;
  int m;
  int n;
  int k;
  int stages;  // of the depth
  int tiles;
  int tiles_m;
  int splits;
  const void* x_values;  // of outliers
  const int8_t* codes;
  const int32_t* columns;
  const int32_t* count;
};

// kOutliers: there is a threshold.
template <class TOf, int kColumnsOf, bool kOutliersOf>
struct Int8WgmmaShape {
  using T = TOf;
  static constexpr int kColumns = kColumnsOf;
  static constexpr bool kOutliers = kOutliersOf;
  // Outliers are multiplied by tensor cores; those of float32, which these do not have, one by one.
  static constexpr bool kOutlierTiles = kOutliers && sizeof(T) == 2;
  static constexpr int kRows = LinearInt8Wgmma::kRows;
  static constexpr int kSums = kColumns / 2;  // of a thread
  static constexpr int kWeightBytes = kRows * LinearInt8Wgmma::kDepth;
  static constexpr int kStageBytes = LinearInt8Wgmma::stage_bytes(kColumns);
  static constexpr int kComputeThreads = 256;
  static constexpr int kThreads = kComputeThreads + 128;
  static constexpr int kLoadRegisters = 40;
  static constexpr int kComputeRegisters = 232;

  // Shared memory: the ring on a 1024-byte boundary, which also holds sums of a cluster; tiles of the weight's and of
  // x's first outlier columns, in rows of 128 bytes, swizzled as wgmma wants its operands; rows of out on their way;
  // barriers, scales of x.
  static constexpr int kOutlierColumns = kOutlierValues;
  static constexpr int kOutlierThreads = 96;
  static constexpr int kReaders = kComputeThreads / 32 + (kOutlierTiles ? kOutlierThreads / 32 : 0);  // warps
  static constexpr int kOutlierBytes = kOutlierTiles ? (kRows + kColumns) * 128 : 0;
  static constexpr int kRest = 2048;
  static constexpr int kMaxStages = 10;
  static constexpr int kSlabRows = kColumns < 32 ? kColumns : 32;  // of x, for each of two warpgroups
  static constexpr int kSlabBytes = 2 * kSlabRows * 128;
  static constexpr int kFit = (227 * 1024 - 1024 - kRest - kOutlierBytes - kSlabBytes) / kStageBytes;
  static constexpr int kStages = kFit < kMaxStages ? kFit : kMaxStages;
  static constexpr int kOutlierWeight = kStages * kStageBytes;
  static constexpr int kOutlierX = kOutlierWeight + (kOutlierTiles ? kRows * 128 : 0);
  static constexpr int kSlabs = kOutlierWeight + kOutlierBytes;
  static constexpr int kFull = kSlabs + kSlabBytes;
  static constexpr int kEmpty = kFull + kStages * 8;
  static constexpr int kPicked = kEmpty + kStages * 8;
  static constexpr int kOutlierXFull = kPicked + 8;
  static constexpr int kOutliersUsed = kOutlierXFull + 8;
  static constexpr int kScales = kOutliersUsed + 8;
  static constexpr int kList = kScales + kColumns * 4;
  static constexpr int kBytes = kList + (kOutlierColumns + 1) * 4;
  static constexpr int kSharedBytes = kBytes + 1024;
  static_assert(kBytes <= kFull + kRest && kComputeThreads * kSums * 4 <= kOutlierWeight);
};

inline constexpr int kInt8ComputeBarrier = 1;  // named barriers: of both computing warpgroups, and of each, 2 and 3
inline constexpr int kInt8GroupBarrier = 2;
inline constexpr int kInt8OutlierBarrier = 4;  // of the warps that bring outliers

// What a block computes at a time.
struct Int8Tile {
  int m0;
  int n0;
  int begin;  // stages
  int end;
  uint32_t parity;  // of the block's tiles by turns
};

// Calls f(tile) for the block's tiles: one, or, where blocks go on, every so many.
template <class Shape, class F>
__device__ void for_tiles(const Int8WgmmaArgs& args, F f) {
  const int split = static_cast<int>(blockIdx.x) % args.splits;
  const auto tile = [&](int i, uint32_t parity) {
    return Int8Tile{.m0 = i % args.tiles_m * Shape::kColumns,
                    .n0 = i / args.tiles_m * LinearInt8Wgmma::kRows,
                    .begin = args.stages * split / args.splits,  // no more than 1024 times 8
                    .end = args.stages * (split + 1) / args.splits,
                    .parity = parity};
  };
  const int first = static_cast<int>(blockIdx.x) / args.splits;
  if constexpr (LinearInt8Wgmma::goes_on(Shape::kColumns)) {
    const int step = static_cast<int>(gridDim.x) / args.splits;
    uint32_t parity = 0;
    for (int i = first; i < args.tiles; i += step, parity ^= 1) f(tile(i, parity));
  } else {
    f(tile(first, 0));
  }
}

// A place in the ring, and how often it has gone round.
template <class Shape>
struct Int8Slot {
  int index = 0;
  uint32_t parity = 0;

  __device__ void next() {
    if (++index == Shape::kStages) {
      index = 0;
      parity ^= 1;
    }
  }
};

}  // namespace qbits::cuda
