#pragma once

#include "cuda/linear_4bit_mma_parts.cuh"
#include "cuda/linear_4bit_ptx.cuh"
#include "cuda/linear_4bit_wgmma_mma.cuh"
#include "ops/linear_4bit_wgmma_plan.h"

// Shapes and shared memory of the wgmma kernel of linear_4bit, and how its weights are decoded.

namespace qbits::cuda {

inline constexpr float kFractionShift = 4.0F;  // Weights16: added to values, a power of two so that it leaves exactly
inline constexpr int kWgmmaScaleThreads = 64;
inline constexpr int kWgmmaStepDepth = 64;  // of a tile of x: 128 bytes, one swizzle line

// What a block computes, and its rings.
template <int kColumnsOf, int kGroupsOf, WgmmaDecode kDecodeOf, bool kAffineOf, bool kTransposedOf, bool kGroupedOf>
struct WgmmaShape {
  static constexpr int kColumns = kColumnsOf;
  static constexpr int kGroups = kGroupsOf;  // computing warpgroups
  static constexpr WgmmaDecode kDecode = kDecodeOf;
  static constexpr bool kAffine = kAffineOf;
  static constexpr bool kTransposed = kTransposedOf;  // the gradient
  static constexpr bool kGrouped = kGroupedOf;        // the products of experts
  // An instruction of wgmma waits in its warp until the one before it is nearly done, so a warpgroup that multiplies
  // decodes nothing. Where products take long, warpgroups take turns: one multiplies while the others decode.
  static constexpr bool kTurns = kColumns >= 128;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kComputeThreads = 128 * kGroups;
  static constexpr int kStageDepth = wgmma_stage_depth(kColumns);
  static constexpr int kUnits = kStageDepth / kWgmmaStepDepth;  // of a stage, each with a tile of x
  static constexpr int kStages = kColumns == 256 ? 4 : kColumns == 128 ? 3 : kColumns == 64 ? 5 : 6;
  static constexpr int kSlabs = kGroups == 2 && kColumns < 256 ? 2 : 1;  // of each warpgroup, on the way out
  // A launch gives 168 registers to each of 384 threads, 128 to each of 512.
  static constexpr int kLoadRegisters = 56;
  static constexpr int kComputeRegisters = kGroups == 2 ? 224 : 152;
};

struct WgmmaArgs {
  CUtensorMap x;
  CUtensorMap codes;
  const void* bias;
  void* out;
  int64_t m;
  int64_t outputs;  // columns of out: rows of the weight, or its columns
  int64_t depth;    // of the sums
  WgmmaSchedule schedule;
  void* workspace;         // of shared tiles: a flag for each share, then the sums of each
  uint64_t nonce;          // the value of a flag that is set, of this launch alone
  bool wide_groups;        // scales change every 64 elements of a row at most
  int scale_size;          // bytes of one
  int scale_count;         // scales of 256 (the gradient: 128) elements of a row, if one load brings them, else 0
  float factor;            // joins the scales
  uint32_t values[16];     // of each code, as the decoder wants them
  const int32_t* offsets;  // of experts
  int experts;
  Weight4bitView weight;
};

// A line of the table begins at 256 times its byte, so that one instruction turns a byte into an address. The other
// half of each 256 bytes is a gap.
inline constexpr int kTableLine = 128;
inline constexpr int kTablePitch = 256;

// Where the parts lie in the block's shared window. The addresses are constants so that a lookup needs no addition;
// the kernel checks that dynamic shared memory begins where they say.
inline constexpr int kWgmmaAllBarrier = 1;    // named barriers: of the computing warpgroups,
inline constexpr int kWgmmaScaleBarrier = 2;  // of the warps that load scales,
inline constexpr int kWgmmaGroupBarrier = 3;  // of each warpgroup, 3 to 6,
inline constexpr int kWgmmaTurnBarrier = 7;   // and of their turns, from 7 on: of one group and the one before it
inline constexpr int kWgmmaTurnThreads = 256;

template <class Shape>
struct WgmmaLayout {
  static constexpr int kRows = Shape::kGroups * 64;
  static constexpr int kXBytes = Shape::kColumns * 128;
  static constexpr int kCodeBytes = kRows * Shape::kStageDepth / 2;
  // Scales are kept for runs of 32. They lie in the gaps of the table, 32 in each.
  static constexpr int kScaleRows = Shape::kTransposed ? Shape::kStageDepth : kRows;
  static constexpr int kScaleGroups = (Shape::kTransposed ? kRows : Shape::kStageDepth) / 32;
  static constexpr int kScaleGroupBytes = kScaleRows / 32 * kTablePitch;
  static constexpr int kZeros = kScaleGroups * kScaleGroupBytes;  // of affine codes, from their scales
  static constexpr int kScaleBytes = kZeros * (Shape::kAffine ? 2 : 1);
  static constexpr uint32_t kBase = 1024;
  static constexpr uint32_t kTable = kBase;
  static constexpr uint32_t kScales = kTable + kTableLine;
  static constexpr uint32_t kX = kTable + 256 * kTablePitch;
  static constexpr uint32_t kCodes = kX + Shape::kStages * Shape::kUnits * kXBytes;
  static constexpr uint32_t kSlabs = kCodes + Shape::kStages * kCodeBytes;
  static constexpr uint32_t kNested = kSlabs + Shape::kGroups * Shape::kSlabs * 4096;
  static constexpr uint32_t kFull = kNested + 1024;
  static constexpr uint32_t kEmpty = kFull + Shape::kStages * 8;
  // Of the block's first and last shared tile: its sums are left, its share is counted, and whether it was the last.
  static constexpr uint32_t kShareLeft = kEmpty + Shape::kStages * 8;
  static constexpr uint32_t kShareCounted = kShareLeft + 2 * 8;
  static constexpr uint32_t kShareLast = kShareCounted + 2 * 8;
  static constexpr uint32_t kEnd = kShareLast + 2 * 4;
  static constexpr int kBytes = kEnd - kBase;
  // Sums on their way to another block of the cluster, in place of the ring; fragments store without bank conflicts.
  static constexpr int kSumPitch = kRows + 4;
  static_assert(Shape::kColumns * kSumPitch * 4 <= static_cast<int>(kSlabs - kX));
  static_assert(kBytes <= 227 * 1024 && kX % 1024 == 0 && kCodes % 1024 == 0);
  static_assert(Shape::kStages * kScaleBytes <= 256 * kTablePitch);
};

// A position in a ring of stages and the parity of its barriers.
template <int kStages>
struct RingSlot {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// Value pairs of the 256 bytes, the high nibble first. Pairs of 16-bit values are repeated for 32 lanes, pairs of
// floats for 16: no two lanes that are served together share a bank.
template <WgmmaDecode kDecode>
__device__ void fill_table(uint32_t table, const uint32_t (&values)[16], int byte) {
  uint4 line;
  if constexpr (kDecode == WgmmaDecode::Weights32) {
    line = make_uint4(values[byte >> 4], values[byte & 15], values[byte >> 4], values[byte & 15]);
  } else {
    const uint32_t pair = values[byte >> 4] | values[byte & 15] << 16;
    line = make_uint4(pair, pair, pair, pair);
  }
  for (int i = 0; i < 8; ++i) store_shared(table + byte * kTablePitch + ((i + byte) & 7) * 16, line);
}

// Scales of one row for 32 elements as the decoder wants them.
struct WgmmaScale {
  float scale;
  float zero;  // Weights16: what is added to scaled fractions
};

template <class Shape>
__device__ WgmmaScale make_scale(float scale, float zero) {
  return {scale, Shape::kAffine ? zero : -kFractionShift * scale};
}

// What the table says of a byte.
struct ValuePair {
  uint32_t bits;  // Sums: an operand register
  float first;    // Weights: of the two codes, before the scale
  float second;
};

// The bits of a lane's copy of the table in an offset.
template <WgmmaDecode kDecode>
__device__ uint32_t lane_copy(int lane) {
  return kDecode == WgmmaDecode::Weights32 ? lane % 16 * 8 : lane * 4;
}

// The place in gaps of a row of scales.
__device__ constexpr uint32_t scale_place(uint32_t row) { return row / 32 * kTablePitch + row % 32 * 4; }

// `offset`: the byte times kTablePitch, with the lane's copy in the low bits.
template <WgmmaDecode kDecode, uint32_t kTable>
__device__ ValuePair look_up(uint32_t offset) {
  ValuePair pair{};
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (kDecode == WgmmaDecode::Weights32) {
    asm("ld.shared.v2.f32 {%0,%1}, [%2+%3];\n" : "=f"(pair.first), "=f"(pair.second) : "r"(offset), "n"(kTable));
  } else {
    asm("ld.shared.b32 %0, [%1+%2];\n" : "=r"(pair.bits) : "r"(offset), "n"(kTable));
  }
  if constexpr (kDecode == WgmmaDecode::Weights16) {
    // The middle 16 bits of a float in [2, 8) each.
    pair.first = __uint_as_float(__byte_perm(pair.bits, 0x40000000, 0x7104));
    pair.second = __uint_as_float(__byte_perm(pair.bits, 0x40000000, 0x7324));
  }
#endif
  return pair;
}

// A weight in float32, rounded once at most.
template <class Shape>
__device__ float scaled(float value, const WgmmaScale& s) {
  if constexpr (Shape::kDecode == WgmmaDecode::Weights16) return fmaf(value, s.scale, s.zero);
  return __fmul_rn(value, s.scale);
}

}  // namespace qbits::cuda
