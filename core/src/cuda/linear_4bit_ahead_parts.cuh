#pragma once

#include "cuda/linear_4bit_ahead_ptx.cuh"
#include "cuda/linear_4bit_ptx.cuh"
#include "cuda/linear_4bit_weight.cuh"
#include "cuda/linear_4bit_wgmma_parts.cuh"
#include "ops/linear_4bit_ahead_plan.h"

// Shapes, arguments and shared memory of the kernel that dequantizes ahead.

namespace qbits::cuda {

inline constexpr int kAheadSlabRows = 64;  // of x, by 64 outputs, in a slab of shared memory on the way out

template <int kColumnsOf, bool kAffineOf, bool kTransposedOf>
struct AheadShape {
  static constexpr int kColumns = kColumnsOf;
  static constexpr bool kAffine = kAffineOf;
  static constexpr bool kTransposed = kTransposedOf;  // the gradient
  static constexpr int kGroups = 2;                   // multiplying warpgroups, each with 64 outputs
  static constexpr int kMultiplyThreads = 128 * kGroups;
  static constexpr int kThreads = kMultiplyThreads + 128;
  static constexpr int kDecodeWarps = 3;
  static constexpr int kStages = kColumns == 256 ? 4 : 6;
  static constexpr int kSlabs = 2;  // of each warpgroup, on the way out
  // A launch gives 168 registers to each thread.
  static constexpr int kServiceRegisters = 104;
  static constexpr int kMultiplyRegisters = 200;
};

struct AheadArgs {
  CUtensorMap x;
  CUtensorMap outs;  // out, by boxes of a slab, if its rows begin at 16 bytes
  const void* bias;
  void* out;
  uint8_t* units;  // the ring: weights as wgmma's operands lie in shared memory
  int* ready;      // of each place of the ring: pieces of units dequantized so far
  int* progress;   // of each cluster, kProgressStride apart: it reads no unit before this one any more
  int64_t m;
  int64_t outputs;  // columns of out: rows of the weight, or its columns
  int64_t depth;    // of the sums
  int ring;         // units
  AheadSchedule schedule;
  Weight4bitView weight;
};

// Where the parts lie in the block's shared window. The addresses are constants so that a lookup needs no addition;
// the kernel checks that dynamic shared memory begins where they say.
template <class Shape>
struct AheadLayout {
  static constexpr int kWeightBytes = Ahead::kBlockOutputs * Ahead::kStageDepth * 2;
  static constexpr int kXBytes = Shape::kColumns * 128;
  static constexpr int kStageBytes = kWeightBytes + kXBytes;
  static constexpr int kSlabBytes = kAheadSlabRows * 128;
  static constexpr uint32_t kBase = kSharedBase;
  static constexpr uint32_t kStages = kBase;
  static constexpr uint32_t kSlabs = kStages + Shape::kStages * kStageBytes;
  static constexpr uint32_t kCodebook = kSlabs + Shape::kGroups * Shape::kSlabs * kSlabBytes;
  static constexpr uint32_t kNested = kCodebook + 16 * 4;
  static constexpr uint32_t kFull = kNested + 256 * 4;
  static constexpr uint32_t kEmpty = kFull + Shape::kStages * 8;
  static constexpr uint32_t kUnitOf = kEmpty + Shape::kStages * 8;
  static constexpr uint32_t kReadable = kUnitOf + Shape::kStages * 4;
  static constexpr int kBytes = kReadable + 4 - kBase;
  static_assert(kBytes <= 227 * 1024 && kSlabs % 1024 == 0);
};

inline constexpr int kAheadGroupBarrier = 1;  // named barriers of the multiplying warpgroups, 1 and 2

// A warp dequantizes a piece: 32 rows of the weight by 256 columns, a lane 8 columns of each row.
inline constexpr int kAheadPieceRows = 32;
inline constexpr int kAheadPieces = 8;  // of a unit, whichever way it lies

}  // namespace qbits::cuda
