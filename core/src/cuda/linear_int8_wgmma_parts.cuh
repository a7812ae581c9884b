#pragma once

#include "cuda/linear_int8_kernels.h"
#include "cuda/linear_int8_wgmma_mma.cuh"
#include "cuda/quantize_int8_rowwise.h"
#include "cuda/tile_maps.cuh"

// What the warps of a block of the wgmma kernel of linear_int8 agree on.

namespace qbits::cuda {

// For blocks that list outlier columns themselves.
struct Int8Listing {
  const int8_t* x_codes;  // [m, k], in which these columns still are
  Int8Marks marks;
};

struct Int8WgmmaArgs {
  TileMaps x;  // codes
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
  int burst;             // stages of the weight that a block asks for at once in the beginning
  int pace;              // clocks between the next
  const void* x_values;  // of outliers
  const int8_t* codes;
  const int32_t* columns;
  const int32_t* count;
  Int8Listing listing;
};

enum class Int8Outliers : uint8_t {
  None,    // there is no threshold
  Listed,  // by the quantizer, which has taken them out of x's codes
  Marked,  // and listed by each block
};

template <class TOf, int kRowsOf, int kColumnsOf, Int8Outliers kOutliersOf>
struct Int8WgmmaShape {
  using T = TOf;
  static constexpr int kColumns = kColumnsOf;
  static constexpr bool kOutliers = kOutliersOf != Int8Outliers::None;
  // Outliers are multiplied by tensor cores; those of float32, which these do not have, one by one.
  static constexpr bool kOutlierTiles = kOutliers && sizeof(T) == 2;
  static constexpr int kRows = kRowsOf;
  static constexpr bool kLists = kOutliersOf == Int8Outliers::Marked;
  static constexpr int kRowGroups = kRows / 64;        // warpgroups that compute them
  static constexpr int kDepthGroups = 2 / kRowGroups;  // whose stages take turns
  // Those share out the tile's columns in the end, where they are enough for two.
  static constexpr int kFinishShares = kDepthGroups == 2 && kColumns >= 32 ? 2 : 1;
  static constexpr int kFinishThreads = kRowGroups * kFinishShares * 128;
  static constexpr int kFinishColumns = kColumns / kFinishShares;
  static constexpr int kSums = kColumns / 2;  // of a thread
  static constexpr int kWeightBytes = kRows * LinearInt8Wgmma::kDepth;
  static constexpr int kStageBytes = LinearInt8Wgmma::stage_bytes(kRows, kColumns);
  static constexpr int kComputeThreads = 256;
  static constexpr int kThreads = kComputeThreads + 128;
  static constexpr int kLoadRegisters = 40;
  static constexpr int kComputeRegisters = 232;

  // Shared memory: the ring on a 1024-byte boundary, which also holds sums for other blocks of a cluster or the other
  // warpgroup; what is kept of outlier columns: tiles of the weight's and of x's first, in rows of 128 bytes, swizzled
  // as wgmma wants its operands, or, where the block lists them, their numbers, and marks of columns; rows of out on
  // their way; barriers, scales of x, the list.
  static constexpr bool kPicks = kOutlierTiles && !kLists;
  static constexpr int kOutlierColumns = kLists && kColumns <= 32 ? 2 * kOutlierValues : kOutlierValues;
  static constexpr int kOutlierThreads = 96;
  static constexpr int kReaders = kRowGroups * 4 + (kPicks ? kOutlierThreads / 32 : kLists ? 1 : 0);  // warps
  static constexpr int kNumberBytes = (kRows + kColumns + 4 * kColumns) * (kOutlierColumns + 4);
  static constexpr int kOutlierBytes = kLists ? kNumberBytes : kPicks ? (kRows + kColumns) * 128 : 0;
  static constexpr int kMarkBytes = kLists ? LinearInt8Wgmma::kListedDepth / 8 : 0;
  static constexpr int kSlabRows = kFinishColumns < 32 ? kFinishColumns : 32;  // of x, for each of two warpgroups
  static constexpr int kSlabBytes = 2 * kSlabRows * 128;
  static constexpr int kRest = 2048;
  static constexpr bool kOneTile = !LinearInt8Wgmma::goes_on(kRows, kColumns, kLists);  // the ring is free in the end
  static constexpr int kFit =
      (227 * 1024 - 1024 - kRest - kOutlierBytes - kMarkBytes - (kOneTile ? 0 : kSlabBytes)) / kStageBytes;
  static constexpr int kMaxStages = kRowGroups == 1 ? 22 : 11;
  // Who takes every second stage waits for every lap of a slot only if slots are even in number.
  static constexpr int kEven = kLists || kDepthGroups == 2 ? 2 : 1;
  static constexpr int kStages = (kFit < kMaxStages ? kFit : kMaxStages) / kEven * kEven;
  static constexpr int kOutlierWeight = kStages * kStageBytes;
  static constexpr int kOutlierX = kOutlierWeight + kRows * 128;
  static constexpr int kOutlierNumbers = kOutlierWeight;
  static constexpr int kMarks = kOutlierWeight + kOutlierBytes;
  static constexpr int kSumBytes = kComputeThreads * kSums * 4;  // for others
  static constexpr int kSlabs = kOneTile ? kSumBytes : kMarks + kMarkBytes;
  static constexpr int kFull = kOneTile ? kMarks + kMarkBytes : kSlabs + kSlabBytes;
  static constexpr int kEmpty = kFull + kStages * 8;
  static constexpr int kPicked = kEmpty + kStages * 8;
  static constexpr int kOutlierXFull = kPicked + 8;
  static constexpr int kOutliersUsed = kOutlierXFull + 8;
  static constexpr int kCount = kOutliersUsed + 8;
  static constexpr int kScales = kCount + 8;
  static constexpr int kList = kScales + kColumns * 4;
  static constexpr int kBytes = kList + (kOutlierColumns + 16) * 4;
  static constexpr int kSharedBytes = kBytes + 1024;
  static_assert(kBytes <= kFull + kRest && kSumBytes + (kOneTile ? kSlabBytes : 0) <= kOutlierWeight);
  // What is kept of further columns that the block lists, as many at a time as of the first: their numbers and their
  // list, in the ring, behind what else lies there in the end.
  static constexpr int kMore = kSumBytes + kSlabBytes;
  static constexpr int kMoreBytes = kOutlierBytes + (kOutlierColumns + 16) * 4;
  static constexpr int kBatches = 1 + (kOutlierWeight - kMore) / kMoreBytes;
  static_assert(!kLists || (kBatches >= 2 && kMore % 16 == 0 && kOutlierBytes % 16 == 0 && kMoreBytes % 16 == 0));
};

inline constexpr int kInt8ComputeBarrier = 1;  // named barriers: of both computing warpgroups or those that finish a
                                               // tile; of each, 2 and 3
inline constexpr int kInt8GroupBarrier = 2;
inline constexpr int kInt8OutlierBarrier = 4;  // of the warps that bring outliers
inline constexpr int kInt8MarksBarrier = 5;    // of those, and both warpgroups

// What a block computes at a time.
struct Int8Tile {
  int m0;
  int n0;
  int begin;  // stages
  int end;
  uint32_t parity;  // of the block's tiles by turns
};

// Tile i, of which the block has all stages or a share.
template <class Shape>
__device__ Int8Tile tile_at(const Int8WgmmaArgs& args, int i, uint32_t parity) {
  const int split = static_cast<int>(blockIdx.x) % args.splits;
  return {.m0 = i % args.tiles_m * Shape::kColumns,
          .n0 = i / args.tiles_m * Shape::kRows,
          .begin = args.stages * split / args.splits,  // no more than 1024 times 8
          .end = args.stages * (split + 1) / args.splits,
          .parity = parity};
}

template <class Shape>
__device__ Int8Tile first_tile(const Int8WgmmaArgs& args) {
  return tile_at<Shape>(args, static_cast<int>(blockIdx.x) / args.splits, 0);
}

// Calls f(tile) for the block's tiles: one, or, where blocks go on, every so many.
template <class Shape, class F>
__device__ void for_tiles(const Int8WgmmaArgs& args, F f) {
  if constexpr (Shape::kOneTile) {
    f(first_tile<Shape>(args));
  } else {
    const int step = static_cast<int>(gridDim.x) / args.splits;
    uint32_t parity = 0;
    for (int i = static_cast<int>(blockIdx.x) / args.splits; i < args.tiles; i += step, parity ^= 1) {
      f(tile_at<Shape>(args, i, parity));
    }
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
