#pragma once

#include "cuda/grouped_linear_4bit_pieces.cuh"
#include "cuda/linear_4bit_weight.cuh"

// What the tensor-core kernels of linear_4bit and its gradient share.

namespace qbits::cuda {

inline constexpr int kMmaThreads = 256;
inline constexpr int kMmaGroupTiles = 8;  // m tiles that walk along n together, for reuse of x and codes in L2

// Where 16 bytes of a row lie in shared memory, permuted so that the eight rows a warp reads at once do not meet
// in the same banks. kChunks: 16-byte chunks of a row.
template <int kChunks>
__host__ __device__ constexpr int swizzle_rows(int row, int chunk) {
  constexpr int kRowsPerLine = kChunks < 8 ? 8 / kChunks : 1;
  constexpr int kMask = kChunks < 8 ? kChunks - 1 : 7;
  return chunk ^ (row / kRowsPerLine & kMask);
}

// The output tile and split of a block.
struct MmaPosition {
  int64_t m_tile;
  int64_t n_tile;
  int64_t split;
};

__host__ __device__ inline MmaPosition mma_position(int64_t block, int64_t m_tiles, int64_t n_tiles) {
  const int64_t tiles = m_tiles * n_tiles;
  const int64_t tile = block % tiles;
  const int64_t group = tile / (kMmaGroupTiles * n_tiles);
  const int64_t rest = tile % (kMmaGroupTiles * n_tiles);
  const int64_t left = m_tiles - group * kMmaGroupTiles;
  const int64_t height = left < kMmaGroupTiles ? left : kMmaGroupTiles;
  return {group * kMmaGroupTiles + rest % height, rest / height, block / tiles};
}

// What a block computes: `columns` outputs from `column` on, of rows m0 to m_end of x, with the weight that begins at
// row `base`; nothing if m0 is m_end. Without experts there is one weight.
struct MmaTile {
  int64_t m0;
  int64_t m_end;
  int64_t column;
  int64_t base;
  int64_t split;
};

template <int kRows, int kColumns>
__device__ MmaTile mma_tile(int64_t m, int64_t columns, const int32_t* offsets, int experts, int64_t weight_rows) {
  const int64_t n_tiles = (columns + kColumns - 1) / kColumns;
  if (offsets == nullptr) {
    const MmaPosition at = mma_position(blockIdx.x, (m + kRows - 1) / kRows, n_tiles);
    return {at.m_tile * kRows, m, at.n_tile * kColumns, 0, at.split};
  }
  const ExpertPiece piece =
      ExpertPieces<kRows>(offsets, experts, static_cast<int>(m)).find(static_cast<uint32_t>(blockIdx.x / n_tiles));
  return {piece.begin, piece.end, blockIdx.x % n_tiles * kColumns, piece.expert * weight_rows, 0};
}

// A scale as loaded, turned into a float32 scale (and zero) one stage of arithmetic later.
struct RawScale {
  float first = 0.0F;   // absmax, its 8-bit code, or an affine scale
  float second = 0.0F;  // absmax of 256 scales, or an affine zero
};

// For power-of-two blocks, or affine groups of whole rows.
template <bool kAffine>
__device__ RawScale load_scale(const Weight4bitView& w, int64_t n, int64_t k) {
  RawScale raw;
  if constexpr (kAffine) {
    const int64_t i = n * w.row_groups + (k >> w.block_shift);
    raw.first = load_float(w.scales, w.scale_dtype, i);
    raw.second = load_float(w.zeros, w.scale_dtype, i);
  } else {
    const int64_t i = (n * w.cols + k) >> w.block_shift;
    if (w.nested_absmax == nullptr) {
      raw.first = static_cast<const float*>(w.scales)[i];
    } else {
      raw.first = static_cast<const uint8_t*>(w.scales)[i];
      raw.second = w.nested_absmax[i / kNestedBlockSize];
    }
  }
  return raw;
}

// The absmax, with the 256 values of double quantization in shared memory.
__device__ inline float finish_absmax(const Weight4bitView& w, const float* nested_code, RawScale raw) {
  if (w.nested_absmax == nullptr) return raw.first;
  return __fadd_rn(__fmul_rn(nested_code[static_cast<int>(raw.first)], raw.second), *w.offset);
}

}  // namespace qbits::cuda
