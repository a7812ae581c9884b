#pragma once

#include "cuda/int8_words.cuh"
#include "ops/ceil_div.h"

// Copies of igemm's operands as its kernel reads them: K-major, in rows that begin at 16 bytes, 0 behind the last
// element.

namespace qbits::cuda {

struct IgemmCopyArgs {
  const int8_t* from;  // [batch, rows, k], or transposed [batch, k, rows]
  int8_t* to;          // [batch, rows, pitch]
  int64_t batch;
  int64_t rows;
  int64_t k;
  int64_t pitch;  // a multiple of 16
};

inline constexpr int kIgemmCopyThreads = 256;
inline constexpr int kIgemmCopyPieces = 4;  // of 16 bytes, a thread's

inline __global__ void __launch_bounds__(kIgemmCopyThreads)
    igemm_copy_kernel(const __grid_constant__ IgemmCopyArgs args) {
  const int64_t pieces = args.pitch / 16;  // of a row
  const int64_t all = args.batch * args.rows * pieces;
  const int8_t* const end = args.from + args.batch * args.rows * args.k;
  const int64_t first = int64_t{blockIdx.x} * (kIgemmCopyThreads * kIgemmCopyPieces) + threadIdx.x;
  RawCodes16 raw[kIgemmCopyPieces];
#pragma unroll
  for (int j = 0; j < kIgemmCopyPieces; ++j) {
    const int64_t piece = first + j * kIgemmCopyThreads;
    if (piece < all) raw[j].load(args.from + piece / pieces * args.k + piece % pieces * 16, end);
  }
#pragma unroll
  for (int j = 0; j < kIgemmCopyPieces; ++j) {
    const int64_t piece = first + j * kIgemmCopyThreads;
    if (piece >= all) continue;
    const int64_t k = piece % pieces * 16;
    const uint4 v = raw[j].shifted(lead_of(args.from + piece / pieces * args.k + k));
    uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int64_t left = args.k - k - w * 4;
      if (left < 4) words[w] = left <= 0 ? 0 : words[w] & ((1U << left * 8) - 1);
    }
    *reinterpret_cast<uint4*>(args.to + piece * 16) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

inline constexpr int kIgemmTransposeTile = 128;  // rows, and of k

// A word of shared memory for four elements of k, numbered in a tile, of a row. Permuted so that a warp stores to all
// banks at once, eight rows four apart by four words, and eight threads read a row whole.
__host__ __device__ constexpr int igemm_transpose_place(int row, int word) {
  return row * (kIgemmTransposeTile / 4) + ((word / 4 ^ (row / 4 & 7)) * 4 | word % 4);
}

inline __global__ void __launch_bounds__(kIgemmCopyThreads)
    igemm_transpose_kernel(const __grid_constant__ IgemmCopyArgs args) {
  constexpr int kTile = kIgemmTransposeTile;
  constexpr int kTimes = kTile * kTile / 16 / kIgemmCopyThreads;  // blocks of 4 x 4, and runs of 16, of a thread
  __shared__ __align__(16) uint32_t shared[kTile * kTile / 4];
  const int64_t tiles_k = ceil_div(args.pitch, int64_t{kTile});
  const int64_t tiles = ceil_div(args.rows, int64_t{kTile}) * tiles_k;
  const int64_t batch = blockIdx.x / tiles;
  const int64_t row0 = blockIdx.x % tiles / tiles_k * kTile;
  const int64_t k0 = blockIdx.x % tiles_k * kTile;
  const int8_t* const end = args.from + args.batch * args.rows * args.k;
  const int tid = static_cast<int>(threadIdx.x);
  const int word = tid / 32 * 4 + tid % 32 / 8;
  uint32_t block[kTimes][4];
#pragma unroll
  for (int j = 0; j < kTimes; ++j) {
    const int64_t row = row0 + (j * 8 + tid % 8) * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t k = k0 + word * 4 + i;
      const bool valid = row < args.rows && k < args.k;
      block[j][i] = valid ? load_codes4(args.from + (batch * args.k + k) * args.rows + row, end) : 0;
    }
  }
#pragma unroll
  for (int j = 0; j < kTimes; ++j) {
    const uint32_t (&b)[4] = block[j];
    const uint32_t low[2] = {__byte_perm(b[0], b[1], 0x5140), __byte_perm(b[2], b[3], 0x5140)};
    const uint32_t high[2] = {__byte_perm(b[0], b[1], 0x7362), __byte_perm(b[2], b[3], 0x7362)};
    const int row = (j * 8 + tid % 8) * 4;
    shared[igemm_transpose_place(row, word)] = __byte_perm(low[0], low[1], 0x5410);
    shared[igemm_transpose_place(row + 1, word)] = __byte_perm(low[0], low[1], 0x7632);
    shared[igemm_transpose_place(row + 2, word)] = __byte_perm(high[0], high[1], 0x5410);
    shared[igemm_transpose_place(row + 3, word)] = __byte_perm(high[0], high[1], 0x7632);
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kTimes; ++j) {
    const int row = (tid + j * kIgemmCopyThreads) / 8;
    const int run = tid % 8;
    if (row0 + row >= args.rows || k0 + run * 16 >= args.pitch) continue;
    *reinterpret_cast<uint4*>(args.to + (batch * args.rows + row0 + row) * args.pitch + k0 + run * 16) =
        *reinterpret_cast<const uint4*>(shared + igemm_transpose_place(row, run * 4));
  }
}

}  // namespace qbits::cuda
