#pragma once

#include "cuda/linear_4bit_codebook.cuh"
#include "cuda/linear_4bit_stream_ptx.cuh"
#include "cuda/linear_4bit_weight.cuh"
#include "ops/linear_4bit_plan.h"

// What the warps of a block of the Stream kernel agree on: its arguments, its part of the product, and where
// things lie in shared memory.

namespace qbits::cuda {

struct StreamArgs {
  const void* x;
  const void* bias;
  void* out;
  int m;
  int tiles;   // of the weight: the groups of 16 rows that a block computes at a time
  int splits;  // blocks of a cluster, which share rows
  int parts;   // warps that share rows, each with a slot of the split's columns
  int warps;   // that multiply: parts for each group of 16 rows
  int stages;
  int rounds;  // tiles of a block, rounded up
  OperandCodebook codebook;
  Weight4bitView weight;
};

struct StreamBarriers {
  uint64_t full[Linear4bitStream::kMaxStages];  // a stage has its codes and scales
  uint64_t free[Linear4bitStream::kMaxStages];  // and has been read
  uint64_t sums_full;                           // all warps have left the sums of a tile
  uint64_t sums_free;
  uint64_t splits_full;  // all blocks of a cluster have left what this one finishes
};
static_assert(sizeof(StreamBarriers) <= Linear4bitStream::kBarrierBytes);

// Dynamic shared memory holds the table of code pairs, the map of double quantization, barriers, stages, sums of x,
// sums of the warps, and sums of the blocks of a cluster.
template <int kColumnTiles, int kChunk, bool kAffine>
struct StreamBlock {
  static constexpr int kSlotChunks = Linear4bitStream::kSlotDepth / kChunk;
  static constexpr int kBarriersOffset = Linear4bitShared::kLutBytes + Linear4bitShared::kNestedCodeBytes;
  static constexpr int kStagesOffset = kBarriersOffset + Linear4bitStream::kBarrierBytes;
  static constexpr int kXSumBytes = Linear4bitStream::x_sum_bytes(kColumnTiles, kChunk, kAffine);

  const StreamArgs& args;
  int warp;  // that multiplies; negative: a service warp
  int lane;
  int groups;
  int split;
  int first_tile;
  int tile_stride;
  int rows;
  int k_begin;  // of the split
  int k_end;
  int code_pitch;
  int scale_pitch;
  int scale_bytes;
  int stage_bytes;

  __device__ explicit StreamBlock(const StreamArgs& a)
      : args(a),
        // The shuffle tells the compiler that a warp's threads agree.
        warp(__shfl_sync(~0U, static_cast<int>(threadIdx.x) / 32, 0) - Linear4bitStream::kServiceWarps),
        lane(static_cast<int>(threadIdx.x) % 32),
        groups(a.warps / a.parts),
        split(static_cast<int>(blockIdx.x) % a.splits),
        first_tile(static_cast<int>(blockIdx.x) / a.splits),
        tile_stride(static_cast<int>(gridDim.x) / a.splits),
        rows(static_cast<int>(a.weight.rows)),
        k_begin(split * a.parts * Linear4bitStream::kSlotDepth),
        k_end(min(k_begin + a.parts * Linear4bitStream::kSlotDepth, static_cast<int>(a.weight.cols))),
        code_pitch(Linear4bitStream::code_pitch(a.parts, kChunk)),
        scale_pitch(Linear4bitStream::scale_pitch(a.parts, kChunk)),
        scale_bytes(Linear4bitStream::scale_bytes(a.parts, groups, kChunk)),
        stage_bytes(Linear4bitStream::stage_bytes(a.parts, groups, kChunk, kAffine)) {}

  // The first row of a tile.
  __device__ int row(int tile) const { return tile * groups * 16; }

  __device__ static float* nested_code() {
    return reinterpret_cast<float*>(dynamic_shared() + Linear4bitShared::kLutBytes);
  }
  __device__ static StreamBarriers& barriers() {
    return *reinterpret_cast<StreamBarriers*>(dynamic_shared() + kBarriersOffset);
  }
  // Codes of a stage's rows, then scales, then the zeros of affine formats.
  __device__ int codes(int stage) const { return kStagesOffset + stage * stage_bytes; }
  __device__ int scales(int stage) const { return codes(stage) + groups * 16 * code_pitch; }
  __device__ float* x_sums() const {
    return reinterpret_cast<float*>(dynamic_shared() + codes(args.stages) + warp * kXSumBytes);
  }
  __device__ float4* sums() const {
    return reinterpret_cast<float4*>(dynamic_shared() + codes(args.stages) + args.warps * kXSumBytes);
  }
  __device__ float4* cluster_sums() const { return sums() + args.warps * kColumnTiles * 32; }
  __device__ int own_rounds() const { return (args.rounds + args.splits - 1) / args.splits; }
  // Of a cluster's tiles, which its blocks finish in turn, those of this block.
  __device__ int finished_tiles() const {
    const int tiles = (args.tiles - first_tile + tile_stride - 1) / tile_stride;
    return (tiles - split + args.splits - 1) / args.splits;
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
