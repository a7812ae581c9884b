#pragma once

#include "cuda/linear_4bit_stream_block.cuh"

// The zeros of affine weights in the Stream kernel: for the 32 or 64 products of a chunk, a zero times the sum of x.
// Those of all chunks of a slot, with their scales, are a product of matrices, which tensor cores take from sums as
// they are: 3 instructions for four chunks, where multiply-adds would be as many as those that scale sums.

namespace qbits::cuda {

// Sums of x over each chunk, for the zero points.
template <class T, class Block, int kColumnTiles, int kChunk>
__device__ void stream_sum_x(const Block& block, int s, const uint32_t (&x)[kColumnTiles][32]) {
  constexpr uint32_t kOnes = std::is_same_v<T, __half> ? 0x3c003c00U : 0x3f803f80U;
  constexpr uint32_t kOnesRows[4] = {kOnes, kOnes, kOnes, kOnes};
#pragma unroll
  for (int ct = 0; ct < kColumnTiles; ++ct) {
#pragma unroll
    for (int c = 0; c < Block::kSlotChunks; ++c) {
      float sum[4] = {};
#pragma unroll
      for (int i = 0; i < kChunk / 8; i += 2) {
        const int word = c * (kChunk / 8) + i;
        mma_16x8x16<T>(sum, kOnesRows, x[ct][word], x[ct][word + 1]);
      }
      if (block.lane < 4) {
        *reinterpret_cast<float2*>(block.x_sums() + ((s * Block::kSlotChunks + c) * kColumnTiles + ct) * 8 +
                                   2 * block.lane) = make_float2(sum[0], sum[1]);
      }
    }
  }
}

// A float32 number as two of tf32, and what 2^-22 of it is.
struct SplitTf32 {
  uint32_t upper;
  uint32_t lower;
};
__device__ inline SplitTf32 split_tf32(float v) {
  const uint32_t upper = __float_as_uint(v) & 0xffffe000;
  return {upper, __float_as_uint(v - __uint_as_float(upper))};
}

// A lane's sums of x of a slot: of chunk t of each four, and column g.
template <class Block, int kColumnTiles>
struct StreamXSums {
  SplitTf32 of[Block::kSlotChunks / 4][kColumnTiles];

  // from: Block::lane_x_sums of the slot.
  __device__ void load(const float* from) {
#pragma unroll
    for (int i = 0; i < Block::kSlotChunks / 4; ++i) {
#pragma unroll
      for (int ct = 0; ct < kColumnTiles; ++ct) of[i][ct] = split_tf32(from[(i * 4 * kColumnTiles + ct) * 8]);
    }
  }
};

// A lane's zeros of a slot, scaled and negative: of rows g and g + 8, and chunk t of each four.
template <class Block>
struct StreamZeros {
  float of[Block::kSlotChunks / 4][2];

  // from: the zero of row g and chunk t; eight_rows: floats from there to row g + 8.
  __device__ void load(const float* from, int eight_rows) {
#pragma unroll
    for (int i = 0; i < Block::kSlotChunks / 4; ++i) {
      of[i][0] = from[i * 4];
      of[i][1] = from[i * 4 + eight_rows];
    }
  }

  template <int kColumnTiles>
  __device__ void subtract(const StreamXSums<Block, kColumnTiles>& x, float (&sums)[kColumnTiles][4]) const {
#pragma unroll
    for (int i = 0; i < Block::kSlotChunks / 4; ++i) {
      const SplitTf32 a0 = split_tf32(of[i][0]);
      const SplitTf32 a1 = split_tf32(of[i][1]);
#pragma unroll
      for (int ct = 0; ct < kColumnTiles; ++ct) {
        const SplitTf32& b = x.of[i][ct];
        mma_16x8x4_tf32(sums[ct], a0.lower, a1.lower, b.upper);
        mma_16x8x4_tf32(sums[ct], a0.upper, a1.upper, b.lower);
        mma_16x8x4_tf32(sums[ct], a0.upper, a1.upper, b.upper);
      }
    }
  }
};

}  // namespace qbits::cuda
