#pragma once

#include "cuda/linear_4bit_codebook.cuh"
#include "cuda/linear_4bit_mma_parts.cuh"
#include "cuda/linear_4bit_ptx.cuh"
#include "cuda/linear_4bit_table.cuh"
#include "cuda/linear_4bit_wgmma_mma.cuh"
#include "cuda/tile_maps.cuh"
#include "ops/linear_4bit_wgmma_plan.h"

// Shapes and shared memory of the wgmma kernel of linear_4bit.

namespace qbits::cuda {

inline constexpr int kWgmmaScaleThreads = 64;
inline constexpr int kWgmmaStepDepth = 64;  // of a tile of x: 128 bytes, one swizzle line

// What a block computes, and its rings. One group of 64 weight rows: two warpgroups share its depth, of each unit the
// first half and the second.
template <int kColumnsOf, int kGroupsOf, WgmmaDecode kDecodeOf, bool kAffineOf, bool kTransposedOf, bool kGroupedOf>
struct WgmmaShape {
  static constexpr int kColumns = kColumnsOf;
  static constexpr int kRowGroups = kGroupsOf;  // of 64 weight rows
  static constexpr int kDepthGroups = kRowGroups == 1 ? 2 : 1;
  static constexpr int kGroups = kRowGroups * kDepthGroups;  // computing warpgroups
  static constexpr WgmmaDecode kDecode = kDecodeOf;
  static constexpr bool kAffine = kAffineOf;
  static constexpr bool kLookedUp = !kAffine || kTransposedOf;  // codes are looked up in a table
  static constexpr bool kPacked = kDecode == WgmmaDecode::Packed;
  static constexpr bool kComputed = kAffine && kDecode != WgmmaDecode::Weights;  // codes come less their zero
  static constexpr bool kTransposed = kTransposedOf;                             // the gradient
  static constexpr bool kGrouped = kGroupedOf;                                   // the products of experts
  static_assert(!kPacked || !kTransposed);
  // An instruction of wgmma waits in its warp until the one before it is nearly done, so a warpgroup that multiplies
  // decodes nothing. Where products take long, warpgroups take turns: one multiplies while the others decode.
  static constexpr bool kTurns = kColumns >= 128;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kComputeThreads = 128 * kGroups;
  static constexpr int kStageDepth = wgmma_stage_depth(kColumns);
  static constexpr int kStageSteps = kStageDepth / kWgmmaStepDepth;  // each with a tile of x
  static constexpr int kUnitStages = kWgmmaUnitDepth / kStageDepth;
  static constexpr int kUnits = kColumns == 256 ? 1 : kColumns == 128 ? 2 : kColumns == 64 || kGroups > 2 ? 3 : 4;
  static constexpr int kStages = kUnits * kUnitStages;  // of the ring
  // Codes and scales are read two steps before x of their stage. Where the ring holds but one unit, they would be
  // wanted when the stage has hardly been given back, so they have a ring of their own. (The gradient, bound by its
  // instructions, loses 3 % by it.)
  static constexpr bool kCodesApart = kColumns == 256 && !kTransposed;
  static constexpr int kCodeUnits = kCodesApart ? 2 * kUnits : kUnits;
  static constexpr int kCodeStages = kCodeUnits * kUnitStages;
  static_assert(!kCodesApart || kDecode != WgmmaDecode::Sums);
  // Whether two blocks of a cluster may share x, each bringing half of it for both.
  static constexpr bool kMayShareX = kColumns == 256 && !kGrouped;
  static_assert(kUnitStages % kDepthGroups == 0);
  // A launch gives 168 registers to each of 384 threads, 128 to each of 512.
  static constexpr int kLoadRegisters = 56;
  static constexpr int kComputeRegisters = kGroups == 2 ? 224 : 152;
};

struct WgmmaArgs {
  TileMaps x;
  CUtensorMap codes;
  uint64_t code_policy;  // of the L2
  const void* bias;
  void* out;
  int64_t m;
  int64_t outputs;         // columns of out: rows of the weight, or its columns
  int64_t depth;           // of the sums
  int first_row;           // of those, the first of this launch
  WgmmaSchedule schedule;  // where blocks share x, of two tiles of weight rows and two blocks for each one
  int sharers;             // of x: blocks of a cluster, with a tile each
  void* workspace;         // of shared tiles: a flag for each block, 16 bytes apart, then the sums of each; of pairs of
                           // clusters: counts, then sums
  uint64_t nonce;          // the value of a flag that is set, of this launch alone
  bool wide_groups;        // scales change every 64 elements of a row at most
  int scale_count;         // scales of 256 (the gradient: 128) elements of a row, if one load brings them, else 0
  float factor;            // joins the scales
  bool zeros_whole;        // affine zeros are numbers of the type of x
  uint32_t values[16];     // of each code, as the decoder wants them
  const int32_t* offsets;  // of experts
  int experts;
  bool early;  // EarlyReads allows all that is read
  Weight4bitView weight;
};

// Where the parts lie in the block's shared window. The addresses are constants so that a lookup needs no addition;
// the kernel checks that dynamic shared memory begins where they say.
inline constexpr int kWgmmaFirstBarrier = 0;  // named barriers: of the warp that copies and the one it waits for,
inline constexpr int kWgmmaAllBarrier = 1;    // of the computing warpgroups,
inline constexpr int kWgmmaScaleBarrier = 2;  // of the warps that load scales, and at first of the two they wait for,
inline constexpr int kWgmmaTellBarrier = 10;  // of the warp that tells of sums that are left and the one it waits for,
inline constexpr int kWgmmaGroupBarrier = 3;  // of each warpgroup, 3 to 6,
inline constexpr int kWgmmaTurnBarrier = 7;   // and of their turns, from 7 on: of one group and the one before it
inline constexpr int kWgmmaPairThreads = 2 * 32;  // of two warps,
inline constexpr int kWgmmaLoadThreads = 4 * 32;  // of the warps that load scales and the two they wait for,
inline constexpr int kWgmmaGroupThreads = 128;
inline constexpr int kWgmmaTurnThreads = 2 * kWgmmaGroupThreads;

template <class Shape>
struct WgmmaLayout {
  static constexpr int kRows = Shape::kRowGroups * 64;
  static constexpr int kXBytes = Shape::kColumns * 128;
  static constexpr int kCodeBytes = kRows * Shape::kStageDepth / 2;
  // Scales are kept for runs of 32, or of 64. They lie in the gaps of the table, 32 in each. Slabs, which hold 32 rows
  // of out on their way there, take the gaps that are left.
  static constexpr int kScaleRun = wgmma_scale_run(Shape::kDecode);
  static constexpr int kScaleRows = Shape::kTransposed ? Shape::kStageDepth : kRows;
  static constexpr int kScaleGroups = (Shape::kTransposed ? kRows : Shape::kStageDepth) / kScaleRun;
  // Affine zeros come after all scales of a stage, or each beside its scale.
  static constexpr int kScaleWords = Shape::kComputed ? 2 : 1;
  static constexpr int kScaleGroupBytes = kScaleRows / 32 * kTablePitch * kScaleWords;
  static constexpr int kScaleTotal = kScaleGroups * kScaleGroupBytes;
  static constexpr int kZeros = Shape::kComputed ? 4 : kScaleTotal;
  // Where a row's scale of a run lies, so that a thread takes several at once: the column decoder those of rows r,
  // r + 1, r + 8 and r + 9, the row decoder all of rows r and r + 8 for a step.
  static __device__ constexpr uint32_t scale_place(uint32_t row, uint32_t run) {
    if constexpr (Shape::kTransposed) {
      return run * kScaleGroupBytes + row / 32 * kTablePitch + row % 32 / 16 * 64 + row % 8 / 2 * 16 + row / 8 % 2 * 8 +
             row % 2 * 4;
    }
    constexpr int kRuns = 64 / kScaleRun;                       // of a step
    constexpr int kGap = kTableLine / 4 / kRuns / kScaleWords;  // rows in a gap
    return run / kRuns * (kRuns * kScaleGroupBytes) + row / kGap * kTablePitch + row % kGap / 16 * 64 +
           (row % 8 * 2 + row / 8 % 2) * kRuns * kScaleWords * 4 + run % kRuns * 4;
  }
  static constexpr int kScaleBytes = kScaleTotal * (Shape::kAffine && !Shape::kComputed ? 2 : 1);
  static constexpr uint32_t kBase = kSharedBase;
  static constexpr uint32_t kTable = kBase;
  static constexpr uint32_t kScales = kTable + kTableLine;
  static constexpr int kSlabPitch = kTablePitch;  // from row to row
  static constexpr int kSlabBytes = 32 * kSlabPitch;
  static constexpr uint32_t kSlabs = kScales + Shape::kCodeStages * kScaleBytes;
  static constexpr int kGroupSlabs =
      (256 * kTablePitch - Shape::kCodeStages * kScaleBytes) / kSlabBytes / Shape::kGroups;
  static_assert(kGroupSlabs >= 1);
  static constexpr uint32_t kX = kTable + 256 * kTablePitch;
  static constexpr uint32_t kCodes = kX + Shape::kStages * Shape::kStageSteps * kXBytes;
  static constexpr uint32_t kNested = kCodes + Shape::kCodeStages * kCodeBytes;
  static constexpr uint32_t kFull = kNested + 1024;
  static constexpr uint32_t kEmpty = kFull + Shape::kCodeStages * 8;
  static constexpr uint32_t kXFull = Shape::kCodesApart ? kEmpty + Shape::kCodeStages * 8 : kFull;
  static constexpr uint32_t kXEmpty = Shape::kCodesApart ? kXFull + Shape::kStages * 8 : kEmpty;
  // Its sums are left; where two clusters share a tile, whether a warpgroup was the second to leave some.
  static constexpr uint32_t kShareLeft = kXEmpty + Shape::kStages * 8;
  static constexpr uint32_t kShareSecond = kShareLeft + 8;
  static constexpr uint32_t kEnd = kShareSecond + Shape::kGroups * 4;
  static constexpr int kBytes = kEnd - kBase;
  // The sums of a block before this one come in place of x or, of few columns, of codes: so many of a stage's bytes.
  static constexpr bool kShareInX = Shape::kColumns > 32;
  static constexpr uint32_t kShare = kShareInX ? kX : kCodes;
  static constexpr int kShareStageBytes = kShareInX ? Shape::kStageSteps * kXBytes : kCodeBytes;
  static constexpr int kShareBytes = Shape::kColumns * kRows * 4;
  static constexpr int kShareStages = kShareBytes / kShareStageBytes;
  static_assert(Shape::kDepthGroups > 1 || kShareStages * kShareStageBytes == kShareBytes);
  // Sums on their way to another block of the cluster, in place of the rings.
  static constexpr int kSumBytes = Shape::kColumns * 64 * 4;  // of a warpgroup
  static_assert(Shape::kGroups * kSumBytes <= static_cast<int>(kNested - kX));
  static_assert(kBytes <= 227 * 1024 && kX % 1024 == 0 && kCodes % 1024 == 0);
};

// A position in a ring of stages and the parity of its barriers.
template <int kStages>
struct RingSlot {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (kStages == 1 || ++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// Places of a unit, or of a stage, in both rings; in one where codes are not apart.
template <int kCodes, int kX, bool kApart>
struct RingPlace {
  RingSlot<kCodes> codes;
  RingSlot<kX> x_apart;

  __device__ const auto& x() const {
    if constexpr (kApart) {
      return x_apart;
    } else {
      return codes;
    }
  }

  __device__ void advance() {
    codes.advance();
    if constexpr (kApart) x_apart.advance();
  }
};

}  // namespace qbits::cuda
