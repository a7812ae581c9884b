#pragma once

#include "cuda/linear_4bit_mma_parts.cuh"
#include "cuda/linear_4bit_staging.cuh"
#include "ops/int8.h"
#include "ops/linear_int8_weight_only_plan.h"

// linear_int8_weight_only on the tensor cores. Rows of the weight are the 16-row operand of mma.m16n8k16, made 16-bit
// floats in registers, where they are exact; rows of x are its 8 columns. As in linear_4bit, both operands number the
// depth so that each of the four lanes of a quad takes what lies side by side: 16 codes and 32 bytes of x feed four
// instructions.

namespace qbits::cuda {

struct WeightOnlyMmaArgs {
  const void* x;
  const int8_t* codes;
  const float* scales;
  const void* bias;
  void* out;
  int64_t m;
  int64_t n;
  int64_t k;
  int stages;
};

// Four codes as two pairs of T, the first of each in the low half.
template <class T>
__device__ void to_pairs(uint32_t codes, uint32_t (&pairs)[2]) {
  const auto subtract = [](uint32_t a, uint32_t b) {
    const Pair<T> difference = __hsub2(reinterpret_cast<const Pair<T>&>(a), reinterpret_cast<const Pair<T>&>(b));
    return reinterpret_cast<const uint32_t&>(difference);
  };
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t places = i == 0 ? 0x4140 : 0x4342;
    if constexpr (std::is_same_v<T, __half>) {
      // From 1024 on floats of 10 bits are the integers: the code plus 128 under that exponent, less 1152.
      pairs[i] = subtract(__byte_perm(codes ^ 0x80808080U, 0x64646464U, places), 0x64806480U);
    } else {
      // From 128 on floats of 7 bits are the integers: the low seven bits of the code under that exponent, less 128, or
      // 256 where the sign bit, then the lowest of the exponent, is set.
      const uint32_t words = __byte_perm(codes, 0x43434343U, places);
      pairs[i] = subtract(words & 0xff7fff7fU, words & 0xff80ff80U);
    }
  }
}

// Where a 16-byte chunk of a row of x lies: a warp reads, of two rows at once, every other chunk of a line.
__device__ constexpr int swizzle_pairs(int row, int chunk) { return chunk ^ (row & 1); }
// And of codes: of two rows at once, half a line each.
__device__ constexpr int swizzle_halves(int row, int chunk) { return chunk ^ ((row & 1) << 2); }

// Blocks an SM holds: two hide latency where registers and shared memory allow.
constexpr int weight_only_blocks_per_sm(MmaIsa isa, int tile) {
  return isa == MmaIsa::Sm80 && kLinearInt8WeightOnlyTiles[tile].m <= 32 ? 2 : 1;
}

template <class T, MmaIsa kIsa, int kTile>
__global__ void __launch_bounds__(kMmaThreads, weight_only_blocks_per_sm(kIsa, kTile))
    linear_int8_weight_only_mma_kernel(const __grid_constant__ WeightOnlyMmaArgs args) {
  constexpr LinearInt8WeightOnlyTile kShape = kLinearInt8WeightOnlyTiles[kTile];
  constexpr int kStageBytes = kShape.stage_bytes();
  constexpr int kXOffset = kShape.n * kShape.k;
  constexpr int kCodeChunks = kShape.k / 16;  // 16-byte chunks of a row
  constexpr int kXChunks = kShape.k / 8;
  constexpr int kXPitch = kShape.k * 2;
  constexpr int kCodeRows = kMmaThreads / kCodeChunks;  // that all threads copy at a time
  constexpr int kXRows = kMmaThreads / kXChunks;
  constexpr int kCodePieces = kShape.n / kCodeRows;
  constexpr int kXPieces = kShape.m / kXRows;
  constexpr int kColumns = kShape.m / 8;  // 8-column tiles
  static_assert(kShape.warps_n() * kShape.warps_k() == kMmaThreads / 32 && kShape.k % 128 == 0);
  static_assert(kCodePieces * kCodeRows == kShape.n && kXPieces * kXRows == kShape.m);
  static_assert(kShape.warps_k() * kShape.m * kShape.n * 4 <= 2 * kStageBytes);

  const int tid = static_cast<int>(threadIdx.x);
  const int warp_n = tid / 32 % kShape.warps_n();
  const int warp_k = tid / 32 / kShape.warps_n();
  const int g = tid % 32 / 4;  // the fragment's row in a group of 8, and its column of x
  const int t = tid % 4;       // the lane of the quad
  const MmaPosition at =
      mma_position(blockIdx.x, ceil_div(args.m, int64_t{kShape.m}), ceil_div(args.n, int64_t{kShape.n}));
  const int64_t m0 = at.m_tile * kShape.m;
  const int64_t n0 = at.n_tile * kShape.n;
  const int iterations = static_cast<int>(ceil_div(args.k, int64_t{kShape.k}));
  uint8_t* const ring = dynamic_shared();

  Staging<kIsa, kCodePieces + kXPieces> staging;
  const int code_row = tid / kCodeChunks;
  const int x_row = tid / kXChunks;
  const auto code_place = [&](int i) {
    const int row = code_row + i * kCodeRows;
    return row * kShape.k + swizzle_halves(row, tid % kCodeChunks) * 16;
  };
  const auto x_place = [&](int i) {
    const int row = x_row + i * kXRows;
    return kXOffset + row * kXPitch + swizzle_pairs(row, tid % kXChunks) * 16;
  };
  const auto start_copies = [&](int slot, int64_t k0) {
    uint8_t* const stage = ring + slot * kStageBytes;
    const int64_t code_k = k0 + tid % kCodeChunks * 16;
    const int64_t x_k = k0 + tid % kXChunks * 8;
#pragma unroll
    for (int i = 0; i < kCodePieces; ++i) {
      const int64_t row = n0 + code_row + i * kCodeRows;
      const bool valid = row < args.n && code_k < args.k;
      staging.start(i, stage + code_place(i), valid ? args.codes + row * args.k + code_k : args.codes, valid);
    }
#pragma unroll
    for (int i = 0; i < kXPieces; ++i) {
      const int64_t row = m0 + x_row + i * kXRows;
      const bool valid = row < args.m && x_k < args.k;
      const T* const x = static_cast<const T*>(args.x);
      staging.start(kCodePieces + i, stage + x_place(i), valid ? x + row * args.k + x_k : x, valid);
    }
  };
  const auto finish_copies = [&](int slot) {
    uint8_t* const stage = ring + slot * kStageBytes;
#pragma unroll
    for (int i = 0; i < kCodePieces; ++i) staging.finish(i, stage + code_place(i));
#pragma unroll
    for (int i = 0; i < kXPieces; ++i) staging.finish(kCodePieces + i, stage + x_place(i));
  };

  for (int s = 0; s < args.stages - 1; ++s) {
    if (s < iterations) start_copies(s, int64_t{s} * kShape.k);
    staging.commit();
  }
  finish_copies(0);

  float sums[2][kColumns][4] = {};
  int slot = 0;
  int free_slot = args.stages - 1;
  for (int it = 0; it < iterations; ++it) {
    staging.wait(args.stages - 2);
    __syncthreads();
    // Everybody is past stage it - 1, whose slot the next copies take.
    const int ahead = it + args.stages - 1;
    if (ahead < iterations) start_copies(free_slot, int64_t{ahead} * kShape.k);
    staging.commit();

    const uint8_t* const stage = ring + slot * kStageBytes;
    uint32_t a[2][4][4];  // of two groups of 16 rows, for four instructions
#pragma unroll
    for (int rt = 0; rt < 2; ++rt) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = warp_n * 32 + rt * 16 + h * 8 + g;
        const uint4 codes =
            *reinterpret_cast<const uint4*>(stage + row * kShape.k + swizzle_halves(row, warp_k * 4 + t) * 16);
        const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          uint32_t pairs[2];
          to_pairs<T>(words[j], pairs);
          a[rt][j][h] = pairs[0];
          a[rt][j][2 + h] = pairs[1];
        }
      }
    }
#pragma unroll
    for (int ct = 0; ct < kColumns; ++ct) {
      const int row = ct * 8 + g;
      uint32_t b[8];
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const uint4 x = *reinterpret_cast<const uint4*>(stage + kXOffset + row * kXPitch +
                                                        swizzle_pairs(row, warp_k * 8 + t * 2 + v) * 16);
        b[v * 4] = x.x, b[v * 4 + 1] = x.y, b[v * 4 + 2] = x.z, b[v * 4 + 3] = x.w;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int rt = 0; rt < 2; ++rt) mma_16x8x16<T, kIsa>(sums[rt][ct], a[rt][j], b[j * 2], b[j * 2 + 1]);
      }
    }

    if (ahead < iterations) finish_copies(free_slot);
    free_slot = slot;
    slot = slot + 1 == args.stages ? 0 : slot + 1;
  }

  // Through shared memory, so that the warps that share a tile are added in order and rows of out leave whole.
  staging.wait(0);
  __syncthreads();
  float* const shared = reinterpret_cast<float*>(ring);
  // Permuted so that the lanes of a fragment store to different banks.
  const auto place = [&](int part, int m, int n) { return (part * kShape.m + m) * kShape.n + (n ^ (m / 2 & 3) << 3); };
#pragma unroll
  for (int ct = 0; ct < kColumns; ++ct) {
#pragma unroll
    for (int rt = 0; rt < 2; ++rt) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        shared[place(warp_k, ct * 8 + 2 * t + i % 2, warp_n * 32 + rt * 16 + i / 2 * 8 + g)] = sums[rt][ct][i];
      }
    }
  }
  __syncthreads();
  const T* const bias = static_cast<const T*>(args.bias);
  for (int e = tid; e < kShape.m * kShape.n; e += kMmaThreads) {
    const int64_t m = m0 + e / kShape.n;
    const int64_t n = n0 + e % kShape.n;
    if (m >= args.m || n >= args.n) continue;
    float sum = 0.0F;
#pragma unroll
    for (int part = 0; part < kShape.warps_k(); ++part) sum += shared[place(part, e / kShape.n, e % kShape.n)];
    const float scale = __fdiv_rn(args.scales[n], kInt8Max);
    static_cast<T*>(args.out)[m * args.n + n] =
        from_float<T>(__fmaf_rn(scale, sum, bias != nullptr ? to_float(bias[n]) : 0.0F));
  }
}

// Runs the instantiation of a plan; each (T, kIsa) has a file of its own.
template <class T, MmaIsa kIsa>
void launch_linear_int8_weight_only(const LinearInt8WeightOnlyArgs& args, const LinearInt8WeightOnlyPlan& plan,
                                    Stream stream);

extern template void launch_linear_int8_weight_only<__nv_bfloat16, MmaIsa::Sm80>(const LinearInt8WeightOnlyArgs&,
                                                                                 const LinearInt8WeightOnlyPlan&,
                                                                                 Stream);
extern template void launch_linear_int8_weight_only<__half, MmaIsa::Sm80>(const LinearInt8WeightOnlyArgs&,
                                                                          const LinearInt8WeightOnlyPlan&, Stream);
extern template void launch_linear_int8_weight_only<__half, MmaIsa::Sm75>(const LinearInt8WeightOnlyArgs&,
                                                                          const LinearInt8WeightOnlyPlan&, Stream);

}  // namespace qbits::cuda
