#pragma once

#include <bit>
#include <type_traits>

#include "cuda/grouped_linear_4bit_pieces.cuh"
#include "cuda/linear_4bit_codebook.cuh"
#include "cuda/linear_4bit_stream_ptx.cuh"
#include "cuda/linear_4bit_table.cuh"
#include "cuda/linear_4bit_weight.cuh"
#include "ops/ceil_div.h"
#include "ops/divisor.h"
#include "ops/linear_4bit_stream_plan.h"

// What the warps of a block of the Stream kernel agree on: its arguments, its part of the product, and where
// things lie in shared memory.

namespace qbits::cuda {

struct StreamArgs {
  const void* x;
  const void* bias;
  void* out;
  int m;
  int rows;         // of the weight; of one expert's
  int tiles;        // of these rows: the groups of 16 that a block computes at a time
  int splits;       // blocks of a cluster, which share rows: 1, 2, 4 or 8
  int split_shift;  // log2 of them
  int phases;       // parts of the depth that a block takes one after the other; 1 where there are splits
  int slots;        // of the columns of a split or phase
  int parts;        // warps that share rows, each with one slot, or two
  int groups;       // of 16 rows, of a block
  int warps;        // that multiply: parts for each group
  int stages;
  int rounds;  // tiles of a block, rounded up
  Divisor by_clusters;
  Divisor by_items;  // groups of rows by 8 rows of x, of a tile
  OperandCodebook codebook;
  Weight4bitView weight;
  const int32_t* offsets;  // of experts
  int experts;
  bool early;  // EarlyReads allows all that is read
};

// Affine codes become numbers of T, kOffset + kUnit times the code. A word holds eight, c1 c0 c3 c2 c5 c4 c7 c6 from
// its lowest bits on, of which a pair has those 16 bits apart. Shifts and masks share a pipe of half the rate, so one
// shift serves four codes, and of each byte the higher code stays in place: a subnormal number, or one of the first
// normal ones, that a product brings to its size.
template <class T>
struct StreamAffineCodes {
  static constexpr bool kHalf = std::is_same_v<T, __half>;
  static constexpr float kUnit = kHalf ? 0x1p-24F : 0x1p-7F;
  static constexpr float kOffset = kHalf ? 0.0F : 1.0F;

  // (c1, c5), (c0, c4), (c3, c7) or (c2, c6)
  __device__ static uint32_t pair(uint32_t word, int i) {
    const uint32_t bytes = i < 2 ? word : word >> 8;
    uint32_t pair = 0;
    if constexpr (kHalf) {
      if (i % 2 == 0) return bytes & 0x000f000fU;
      asm("mul.f16x2 %0, %1, %2;\n" : "=r"(pair) : "r"(bytes & 0x00f000f0U), "r"(0x2c002c00U));  // 1 / 16
    } else if (i % 2 == 0) {  // (bytes & mask) | 1.0 twice, of which the compiler would make two instructions
      asm("lop3.b32 %0, %1, %2, %3, 0xea;\n" : "=r"(pair) : "r"(bytes), "n"(0x000f000f), "r"(0x3f803f80U));
    } else if constexpr (kHasSm80) {  // 2^122 times 2^-129 times the code, and 1
      asm("fma.rn.bf16x2 %0, %1, %2, %3;\n"
          : "=r"(pair)
          : "r"(bytes & 0x00f000f0U), "r"(0x7c807c80U), "r"(0x3f803f80U));
    }
    return pair;
  }

  // Eight elements in the order of the pairs.
  __device__ static uint4 order(const uint4& x) {
    return make_uint4(__byte_perm(x.x, x.z, 0x7632), __byte_perm(x.x, x.z, 0x5410), __byte_perm(x.y, x.w, 0x7632),
                      __byte_perm(x.y, x.w, 0x5410));
  }
};

// What codes are looked up in, and the factor of all sums.
template <class T>
OperandCodebook stream_codebook(const Weight4bitArgs& weight) {
  if (!weight.is_affine()) return sums_codebook<T>(weight);
  OperandCodebook book{};
  book.factor = 1 / StreamAffineCodes<T>::kUnit;
  return book;
}

// What a plan says, for a weight (or an expert's) of `rows` rows.
inline void set_plan(StreamArgs& args, int64_t rows, const Linear4bitPlan& plan) {
  args.rows = static_cast<int>(rows);
  args.groups = plan.warps / plan.parts;
  args.tiles = static_cast<int>(ceil_div(rows, int64_t{16} * args.groups));
  args.splits = plan.splits;
  args.split_shift = std::countr_zero(static_cast<unsigned>(plan.splits));
  args.phases = plan.phases;
  args.slots = stream_slots(plan);
  args.parts = plan.parts;
  args.warps = plan.warps;
  args.stages = plan.stages;
  args.rounds = plan.rounds;
  args.by_clusters = Divisor(static_cast<int>(plan.blocks / plan.splits));
  args.by_items = Divisor(args.groups * plan.column_tiles);
}

// Tiles that a block computes with the same rows of x, m0 to m_end: `first`, first + stride, ... below `last`, of the
// weight that begins at row `base`.
struct StreamRun {
  int m0;
  int m_end;
  int base;
  int first;
  int last;
  int stride;
};

struct StreamBarriers {
  uint64_t full[Linear4bitStream::kMaxStages];  // a stage has its codes and scales
  uint64_t free[Linear4bitStream::kMaxStages];  // and has been read
  uint64_t sums_full;                           // all warps have left the sums of a tile
  uint64_t sums_free;
  uint64_t splits_full;  // all blocks of a cluster have left what this one finishes
  uint64_t nested;       // the map of double quantization is there
};
static_assert(sizeof(StreamBarriers) <= Linear4bitStream::kBarrierBytes);

// Tells the compiler that a warp's threads agree on `value`: what follows from it takes the uniform datapath.
__device__ inline int uniform(int value) { return __shfl_sync(~0U, value, 0); }

// The number of a warp among those that multiply; negative: a service warp.
__device__ inline int stream_warp() {
  return uniform(static_cast<int>(threadIdx.x) / 32) - Linear4bitStream::kServiceWarps;
}

// Dynamic shared memory holds the table of code pairs, in its gaps sums of the warps and scales; then barriers, the map
// of double quantization, stages, and sums of the blocks of a cluster. Stages hold codes, and scales of 32 elements.
// Affine formats have neither table nor map; their stages hold scales and zeros, too, and after them come sums of x and
// of the warps. Sums of a block's phases lie where those of a cluster's blocks would.
template <int kColumnTiles, int kChunk, bool kAffine, bool kGrouped, int kWarpSlotsOf, bool kPhasedOf>
struct StreamBlock {
  static constexpr int kWarpSlots = kWarpSlotsOf;
  static constexpr bool kPhased = kPhasedOf;
  static constexpr bool kShares = Linear4bitStream::shares_registers(kColumnTiles, kWarpSlots, kPhased);
  static constexpr bool kIsGrouped = kGrouped;
  static constexpr bool kIsAffine = kAffine;
  static constexpr int kTiles = kColumnTiles;
  // Pieces up to which clusters take tiles in turn, as without experts: the first codes come sooner, but each loads x
  // of every piece, unless half of them can have one of two each. Measured on an H200.
  static constexpr int kStridedPieces = 2;
  static constexpr int kPieceRows = 8 * kColumnTiles;  // of x, in a piece of an expert's
  static constexpr int kSlotChunks = Linear4bitStream::kSlotDepth / kChunk;
  static constexpr int kBarriersOffset = Linear4bitStream::table_bytes(kAffine);
  static constexpr int kNestedOffset = kBarriersOffset + Linear4bitStream::kBarrierBytes;
  static constexpr int kXSumBytes = kWarpSlots * Linear4bitStream::x_sum_bytes(kColumnTiles, kChunk, kAffine);
  static constexpr bool kScalesInGaps = Linear4bitStream::scales_in_gaps(kChunk, kAffine);
  // Scales in float32 are copied into a stage once it is free, not loaded to registers before: measured on an H200, for
  // the products that gain by it.
  static constexpr bool kCopiesScales = !kAffine && !kGrouped && kColumnTiles == 2 && kWarpSlots == 1;
  static constexpr int kScaleArrivals = kCopiesScales ? 32 : 1;  // of the lanes that bring a stage's
  static constexpr int kScaleGapsOffset = Linear4bitStream::sum_gaps(kColumnTiles) * kTablePitch + kTableLine;

  const StreamArgs& args;
  int warp;  // that multiplies; negative: a service warp
  int lane;
  int groups;
  int split;
  int first_tile;  // experts: of the tiles of all pieces, numbered piece after piece
  int last_tile;
  int tile_stride;
  int rows;
  int split_begin;
  int split_end;
  int code_pitch;
  int scale_pitch;
  int scale_bytes;
  int stage_bytes;
  int stages_offset;

  // Whether all warps wait for one another before they read from memory: with experts, whose offsets say what, and
  // where registers change hands, which was faster.
  static constexpr bool kTogether = kGrouped || kShares;
  // Named barriers: of the warps that multiply, once their table is there; of those and of the warps that bring scales,
  // once barriers are there and the L1 has no lines that are too old; of the warp that adds sums and the one that
  // initializes what it waits for; and of the one that copies codes and those that ask for x. All that wait at one do
  // so at the same place of the program: else synccheck knows nothing of those that only arrive.
  static constexpr int kTableBarrier = 1;
  static constexpr int kReadBarrier = 2;
  static constexpr int kSumsBarrier = 3;
  static constexpr int kScaleBarrier = 4;
  static constexpr int kCopyBarrier = 5;
  static constexpr int kSumsThreads = 2 * 32;
  static constexpr int kScaleThreads = 4 * 32;  // two warps bring scales
  __device__ static int readers(const StreamArgs& a) { return (a.warps + 2) * 32; }
  __device__ static int copiers(const StreamArgs& a) { return (a.warps + 1) * 32; }
  __device__ void wait_to_read() const {
    if constexpr (!kTogether) group_sync(kReadBarrier, readers(args));
  }
  __device__ void wait_to_read_scales() const {
    if constexpr (!kTogether) group_sync(kScaleBarrier, kScaleThreads);
  }

  __device__ explicit StreamBlock(const StreamArgs& a)
      : args(a),
        warp(stream_warp()),
        lane(static_cast<int>(threadIdx.x) % 32),
        groups(a.groups),
        split(static_cast<int>(cluster_rank())),
        first_tile(cluster_index()),
        last_tile(a.tiles),
        tile_stride(cluster_count()),
        rows(a.rows),
        split_begin(split * a.slots * Linear4bitStream::kSlotDepth),
        split_end(min(split_begin + a.slots * Linear4bitStream::kSlotDepth, static_cast<int>(a.weight.cols))),
        code_pitch(Linear4bitStream::code_pitch(a.slots, kChunk)),
        scale_pitch(Linear4bitStream::scale_pitch(a.slots, kChunk)),
        scale_bytes(Linear4bitStream::scale_bytes(a.slots, groups, kChunk)),
        stage_bytes(Linear4bitStream::stage_bytes(a.slots, groups, kChunk, kAffine)),
        stages_offset(kNestedOffset + (a.weight.nested_absmax != nullptr ? Linear4bitShared::kNestedCodeBytes : 0)) {
    if constexpr (kGrouped) {
      // More tiles than the plan's rounds hold can only come of offsets without sense.
      const int clusters = tile_stride;
      const int cluster = first_tile;
      const int64_t pieces = count_pieces<kPieceRows>(a.offsets, a.experts, a.m);
      const int all = static_cast<int>(min(pieces * a.tiles, int64_t{clusters} * a.rounds));
      last_tile = uniform(all);
      if (pieces > kStridedPieces || a.tiles < clusters) {
        // Each cluster has a range of its own, so that it seldom loads x anew.
        first_tile = uniform(cluster * (all / clusters) + min(cluster, all % clusters));
        last_tile = uniform(first_tile + all / clusters + (cluster < all % clusters ? 1 : 0));
        tile_stride = 1;
      } else if (pieces == 2 && clusters % 2 == 0 && 2 * int64_t{a.tiles} <= int64_t{clusters} * a.rounds) {
        const int piece = cluster % 2;
        first_tile = uniform(piece * a.tiles + cluster / 2);
        last_tile = uniform((piece + 1) * a.tiles);
        tile_stride = clusters / 2;
      }
    }
  }

  // Calls f(run) for the block's tiles; whole warps call it.
  template <class F>
  __device__ void for_runs(F f) const {
    if constexpr (kGrouped) {
      for (int tile = first_tile; tile < last_tile;) {
        const int piece_number = tile / args.tiles;
        const int before = piece_number * args.tiles;
        // A search of its own each time: registers are worth more than what it would remember.
        const ExpertPiece piece = ExpertPieces<kPieceRows>(args.offsets, args.experts, args.m).find(piece_number);
        const StreamRun run{.m0 = uniform(piece.begin),
                            .m_end = uniform(piece.end),
                            .base = uniform(piece.expert * rows),
                            .first = tile - before,
                            .last = min(last_tile - before, args.tiles),
                            .stride = tile_stride};
        f(run);
        tile += count(run) * tile_stride;
      }
    } else {
      f(StreamRun{0, args.m, 0, first_tile, last_tile, tile_stride});
    }
  }

  // Columns of the block's split, or of a phase.
  __device__ int k_begin(int phase) const {
    return kPhased ? phase * args.slots * Linear4bitStream::kSlotDepth : split_begin;
  }
  __device__ int k_end(int phase) const {
    if constexpr (!kPhased) return split_end;
    return min(k_begin(phase + 1), static_cast<int>(args.weight.cols));
  }
  __device__ int phases() const { return kPhased ? args.phases : 1; }

  // Calls f(phase, tile) for a run's tiles, phase after phase.
  template <class F>
  __device__ void for_tiles(const StreamRun& run, F f) const {
    for (int phase = 0; phase < phases(); ++phase) {
      for (int tile = run.first; tile < run.last; tile += run.stride) f(phase, tile);
    }
  }

  // The first row of a tile.
  __device__ int row(int tile) const { return tile * groups * 16; }

  __device__ static float* nested_code() { return reinterpret_cast<float*>(dynamic_shared() + kNestedOffset); }
  __device__ static StreamBarriers& barriers() {
    return *reinterpret_cast<StreamBarriers*>(dynamic_shared() + kBarriersOffset);
  }
  // Codes of a stage's rows, then, where they are not in gaps, scales and the zeros of affine formats.
  __device__ int codes(int stage) const { return stages_offset + stage * stage_bytes; }
  __device__ int scales(int stage) const { return codes(stage) + groups * 16 * code_pitch; }
  // Where they are: the gaps of a stage, and the place of a row's four of a slot, such that neither eight rows of a
  // slot nor eight slots of a row share a bank.
  __device__ int gap_stage_bytes() const { return Linear4bitStream::scale_gaps(args.slots, groups) * kTablePitch; }
  __device__ int gap_scale(int row, int slot) const {
    return kScaleGapsOffset + (row / 8 * args.slots + slot) * kTablePitch + ((row + slot) & 7) * 16;
  }
  __device__ float* x_sums() const {
    return reinterpret_cast<float*>(dynamic_shared() + codes(args.stages) + warp * kXSumBytes);
  }
  // A lane's first of those of a slot of the warp: of its chunk t and column g.
  __device__ const float* lane_x_sums(int slot) const {
    return x_sums() + (slot * kSlotChunks + lane % 4) * kColumnTiles * 8 + lane / 4;
  }
  // A lane's sums of a warp that multiplies, of its first column tile.
  __device__ float4* sums(int of_warp) const {
    if constexpr (kAffine) {
      return reinterpret_cast<float4*>(dynamic_shared() + codes(args.stages) + args.warps * kXSumBytes) +
             of_warp * kColumnTiles * kSumPitch + lane;
    }
    return reinterpret_cast<float4*>(dynamic_shared() + kTableLine) + of_warp * kColumnTiles * kSumPitch +
           lane / 8 * (kTablePitch / 16) + lane % 8;
  }
  static constexpr int kSumPitch = kAffine ? 32 : 64;
  __device__ float4* cluster_sums() const {
    const int at =
        codes(args.stages) + (kAffine ? args.warps * (kXSumBytes + Linear4bitStream::sum_bytes(kColumnTiles)) : 0);
    return reinterpret_cast<float4*>(dynamic_shared() + at);
  }
  // The clusters' turns, or those of half of them, or, where each has a range of its own, all.
  __device__ int count(int tiles) const {
    if (tile_stride == 1) return tiles;
    const int halves = kGrouped && tile_stride < cluster_count() ? 2 : 1;
    return args.by_clusters.divide(halves * (tiles + tile_stride) - 1).quotient;
  }
  __device__ int count(const StreamRun& run) const { return count(run.last - run.first); }
  // Of `tiles` tiles of a cluster, which its blocks finish in turn, those of this block.
  __device__ int own(int tiles) const { return max(tiles - split + args.splits - 1, 0) >> args.split_shift; }
  __device__ int own_rounds() const { return (args.rounds + args.splits - 1) >> args.split_shift; }
  // Announces the sums that blocks of the cluster will send, some of which may have come.
  __device__ void expect_splits() const {
    if (args.splits > 1 && elect_one()) {
      mbarrier_arrive_expect(&barriers().splits_full, own(count(last_tile - first_tile)) * args.splits * groups *
                                                          Linear4bitStream::sum_bytes(kColumnTiles));
    }
    __syncwarp();
  }
};

// Walks the stages of the ring.
struct StreamStage {
  int index = 0;
  int parity = 0;
  __device__ void next(int stages) {
    if (++index == stages) {
      index = 0;
      parity ^= 1;
    }
  }
};

}  // namespace qbits::cuda
