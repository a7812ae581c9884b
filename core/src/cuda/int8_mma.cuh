#pragma once

#include "cuda/int8_mma_ptx.cuh"
#include "cuda/int8_words.cuh"
#include "cuda/linear_4bit_mma_parts.cuh"
#include "cuda/linear_4bit_staging.cuh"
#include "ops/ceil_div.h"
#include "ops/int8_mma_plan.h"

// Products of 8-bit codes on the tensor cores, for linear_int8 and igemm. Weight rows are the 16-row operand of
// mma.m16n8k32, rows of x its 8 columns; both pass through a ring in shared memory, from where ldmatrix takes 16 codes
// of a row for each lane of a quad four.

namespace qbits::cuda {

// kWhole: weight rows begin at 16 bytes.
template <MmaIsa kIsaOf, int kTileOf, bool kWholeOf>
struct Int8MmaShape {
  static constexpr MmaIsa kIsa = kIsaOf;
  static constexpr bool kWhole = kWholeOf;
  static constexpr Linear4bitTile kTile = Int8Mma::kTiles[kTileOf];
  static constexpr int kColumns = kTile.m / kTile.warps_m / 8;  // fragments of a warp along rows of x
  static_assert(kColumns == 1 || kColumns % 2 == 0);
  static constexpr int kOwn = Int8Mma::own_fragments(kTile);
  static constexpr int kOwnRows = kOwn < 2 ? kOwn : 2;  // fragments that a warp finishes, along weight rows
  static constexpr int kOwnColumns = kOwn / kOwnRows;   // and along rows of x
  static constexpr int kFinishers = Int8Mma::finishers(kTile);
  // Where registers allow.
  static constexpr int kMinBlocks = kIsa == MmaIsa::Sm80 && (kWhole || kTile.m <= 32) ? 2 : 1;
  static_assert(kTile.warps_m * kTile.warps_n * kTile.warps_k == kMmaThreads / 32);
  static_assert(kTile.n == kTile.warps_n * Int8Mma::kWarpRows && kTile.k == kTile.warps_k * Int8Mma::kWarpDepth);
};

// Both K-major. x has rows that begin at 16 bytes, readable and 0 from k to the next multiple of 16.
struct Int8MmaOperands {
  const int8_t* x;       // [m, k]
  const int8_t* weight;  // [n, k]; whole rows are readable as those of x
  int64_t x_pitch;
  int64_t weight_pitch;
  int64_t m;
  int64_t n;
  int64_t k;
  int stages;
};

// A thread's place in its warp, and the warp's in the tile.
template <class Shape>
struct Int8MmaWarp {
  int lane = static_cast<int>(threadIdx.x) % 32;
  int n = static_cast<int>(threadIdx.x) / 32 % Shape::kTile.warps_n;
  int m = static_cast<int>(threadIdx.x) / 32 / Shape::kTile.warps_n % Shape::kTile.warps_m;
  int k = static_cast<int>(threadIdx.x) / 32 / (Shape::kTile.warps_n * Shape::kTile.warps_m);

  // The thread's first row of a fragment, which has another 8 behind it, and the first of its two columns.
  __device__ int row() const { return lane / 4; }
  __device__ int column() const { return lane % 4 * 2; }
  // The first of the fragments the warp finishes, along both; where it finishes none, one that others do.
  __device__ int own_row() const { return Shape::kOwn == 1 ? k % 2 : 0; }
  __device__ int own_column() const { return Shape::kOwn == 1 ? k / 2 % Shape::kColumns : k * Shape::kOwnColumns; }
  __device__ bool finishes() const { return k < Shape::kFinishers; }
};

// Where a lane finds its row of the four 8-row matrices of operands, in a tile of rows of kChunks times 16 bytes that
// lie as swizzle_rows has them: of 16 weight rows by two chunks; of 8 rows of x by four chunks, and of two times 8 by
// two.
template <int kChunks>
__device__ uint32_t rows_address(uint32_t tile, int row, int chunk, int lane) {
  row += lane % 16;
  return tile + (row * kChunks + swizzle_rows<kChunks>(row, chunk + lane / 16)) * 16;
}
template <int kChunks>
__device__ uint32_t columns_address(uint32_t tile, int row, int chunk, int lane) {
  row += lane % 8;
  return tile + (row * kChunks + swizzle_rows<kChunks>(row, chunk + lane / 8)) * 16;
}
template <int kChunks>
__device__ uint32_t two_columns_address(uint32_t tile, int row, int chunk, int lane) {
  row += lane / 16 * 8 + lane % 8;
  return tile + (row * kChunks + swizzle_rows<kChunks>(row, chunk + lane / 8 % 2)) * 16;
}

// The sums of a warp over its share of the depth, for the tile at row m0 of x and row n0 of the weight. Waits for the
// kernels before it once the first weights are on their way: those must not write the weight. Afterwards no copy is
// under way and no thread reads the ring, in `memory`, any more.
template <class Shape>
__device__ void multiply_codes(const Int8MmaOperands& args, int64_t m0, int64_t n0, const Int8MmaWarp<Shape>& warp,
                               uint8_t* memory, int32_t (&sums)[2][Shape::kColumns][4]) {
  constexpr Linear4bitTile kTile = Shape::kTile;
  constexpr int kStageBytes = Int8Mma::stage_bytes(kTile);
  constexpr int kXOffset = kTile.n * kTile.k;
  constexpr int kChunks = kTile.k / 16;
  constexpr int kPassRows = kMmaThreads / kChunks;
  constexpr int kWeightPieces = kTile.n / kPassRows;
  constexpr int kXPieces = kTile.m / kPassRows;
  static_assert(kPassRows % 8 == 0);  // the passes of a thread share one swizzled position
  const int tid = static_cast<int>(threadIdx.x);
  const int row = tid / kChunks;
  const int chunk_k = tid % kChunks * 16;
  const int position = row * kTile.k + swizzle_rows<kChunks>(row, tid % kChunks) * 16;
  const int8_t* weight_source = args.weight + (n0 + row) * args.weight_pitch + chunk_k;  // of the next stage
  const int8_t* x_source = args.x + (m0 + row) * args.x_pitch + chunk_k;
  const int8_t* const weight_end = args.weight + args.n * args.weight_pitch;
  const int valid_n = static_cast<int>(min(args.n - n0 - row, int64_t{kTile.n}));
  const int valid_m = static_cast<int>(min(args.m - m0 - row, int64_t{kTile.m}));
  const int iterations = static_cast<int>(ceil_div(args.k, int64_t{kTile.k}));
  // Stages in which the thread's chunk of a row lies before the row's end.
  const int valid_stages = args.k > chunk_k ? static_cast<int>(ceil_div(args.k - chunk_k, int64_t{kTile.k})) : 0;

  Staging<Shape::kIsa, kWeightPieces + kXPieces> staging;
  RawCodes16 raw[kWeightPieces];
  const auto start_weight = [&](int slot, int stage) {
    uint8_t* const to = memory + slot * kStageBytes + position;
#pragma unroll
    for (int i = 0; i < kWeightPieces; ++i) {
      const bool valid = stage < valid_stages && i * kPassRows < valid_n;
      const int8_t* const from = weight_source + i * kPassRows * args.weight_pitch;
      if constexpr (Shape::kWhole) {
        staging.start(i, to + i * kPassRows * kTile.k, valid ? from : args.weight, valid);
      } else {
        // What follows a row meets zeros of x.
        if (valid) raw[i].load(from, weight_end);
      }
    }
    weight_source += kTile.k;
  };
  const auto finish_weight = [&](int slot) {
    uint8_t* const to = memory + slot * kStageBytes + position;
#pragma unroll
    for (int i = 0; i < kWeightPieces; ++i) {
      if constexpr (Shape::kWhole) {
        staging.finish(i, to + i * kPassRows * kTile.k);
      } else {
        const int lead = lead_of(weight_source + i * kPassRows * args.weight_pitch);  // of every stage
        *reinterpret_cast<uint4*>(to + i * kPassRows * kTile.k) = raw[i].shifted(lead);
      }
    }
  };
  const auto start_x = [&](int slot, int stage) {
    uint8_t* const to = memory + slot * kStageBytes + kXOffset + position;
#pragma unroll
    for (int i = 0; i < kXPieces; ++i) {
      const bool valid = stage < valid_stages && i * kPassRows < valid_m;
      staging.start(kWeightPieces + i, to + i * kPassRows * kTile.k,
                    valid ? x_source + i * kPassRows * args.x_pitch : args.x, valid);
    }
    x_source += kTile.k;
  };
  const auto finish_x = [&](int slot) {
    uint8_t* const to = memory + slot * kStageBytes + kXOffset + position;
#pragma unroll
    for (int i = 0; i < kXPieces; ++i) staging.finish(kWeightPieces + i, to + i * kPassRows * kTile.k);
  };

  const int ahead_stages = args.stages - 1;
  for (int s = 0; s < ahead_stages && s < iterations; ++s) {
    start_weight(s, s);
    finish_weight(s);
  }
  wait_for_kernels_before();
  for (int s = 0; s < ahead_stages; ++s) {
    if (s < iterations) {
      start_x(s, s);
      finish_x(s);
    }
    staging.commit();
  }

  const uint32_t ring = shared_address(memory);
  int slot = 0;
  int free_slot = ahead_stages;
  for (int it = 0; it < iterations; ++it) {
    staging.wait(args.stages - 2);
    __syncthreads();
    // Everybody is past stage it - 1, whose slot the next copies take.
    const int ahead = it + ahead_stages;
    if (ahead < iterations) {
      start_weight(free_slot, ahead);
      start_x(free_slot, ahead);
    }
    staging.commit();

    const uint32_t weight = ring + slot * kStageBytes;
    const uint32_t x = weight + kXOffset;
    const int chunk = warp.k * (Int8Mma::kWarpDepth / 16);
    uint32_t b[4];
    if constexpr (Shape::kColumns == 1) {
      load_matrices<false>(b, columns_address<kChunks>(x, warp.m * 8, chunk, warp.lane));
    }
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const int part = chunk + s * 2;
      uint32_t a[2][4];
#pragma unroll
      for (int rt = 0; rt < 2; ++rt) {
        load_matrices<false>(a[rt],
                             rows_address<kChunks>(weight, warp.n * Int8Mma::kWarpRows + rt * 16, part, warp.lane));
      }
      if constexpr (Shape::kColumns == 1) {
#pragma unroll
        for (int rt = 0; rt < 2; ++rt) mma_16x8x32<Shape::kIsa>(sums[rt][0], a[rt], b[s * 2], b[s * 2 + 1]);
      } else {
#pragma unroll
        for (int ct = 0; ct < Shape::kColumns; ct += 2) {
          load_matrices<false>(b,
                               two_columns_address<kChunks>(x, (warp.m * Shape::kColumns + ct) * 8, part, warp.lane));
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            mma_16x8x32<Shape::kIsa>(sums[i % 2][ct + i / 2], a[i % 2], b[i / 2 * 2], b[i / 2 * 2 + 1]);
          }
        }
      }
    }

    if (ahead < iterations) {
      finish_weight(free_slot);
      finish_x(free_slot);
    }
    free_slot = slot;
    slot = slot + 1 == args.stages ? 0 : slot + 1;
  }
  staging.wait(0);
  __syncthreads();
}

}  // namespace qbits::cuda
