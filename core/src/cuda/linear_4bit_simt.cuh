#pragma once

#include "cuda/grouped_linear_4bit_pieces.cuh"
#include "cuda/linear_4bit_weight.cuh"
#include "ops/linear_4bit_plan.h"

// Products with a 4-bit weight in plain float32 arithmetic: any size, block, alignment and dtype.

namespace qbits::cuda {

struct SimtArgs {
  const void* a;  // x [m, cols] or grad [m, rows]
  const void* bias;
  void* out;
  int64_t m;
  Weight4bitView weight;
  int64_t rows;                      // of the weight of one product
  const int32_t* offsets = nullptr;  // of experts, if there are any
  int experts = 0;
};

// Rows of a that a block multiplies, and the first row of the weight they meet.
struct SimtRows {
  int64_t begin;
  int64_t end;
  int64_t weight;
};

template <int kColumns>
__device__ SimtRows simt_rows(const SimtArgs& args, int64_t tile) {
  if (args.offsets == nullptr) return {tile * kColumns, args.m, 0};
  const ExpertPiece piece =
      ExpertPieces<kColumns>(args.offsets, args.experts, static_cast<int>(args.m)).find(static_cast<uint32_t>(tile));
  return {piece.begin, piece.end, piece.expert * args.rows};
}

inline constexpr int kSimtThreads = 256;
inline constexpr int kSimtTile = 64;
inline constexpr int kSimtDepth = 32;
// Depth steps added up apart before they join the total: keeps long float32 sums accurate.
inline constexpr int kSimtSumSteps = 8;

// out[m, j] = sum over r of a[m, r] B(r, j): forward j = row n of the weight and r = column k, gradient the
// other way round. A thread computes 4 x 4 outputs.
template <class T, bool kGradX>
__global__ void __launch_bounds__(kSimtThreads, 2) linear_4bit_simt_tile(const SimtArgs args) {
  __shared__ float codebook[16];
  __shared__ __align__(16) float a_tile[kSimtDepth][kSimtTile + 4];
  __shared__ __align__(16) float b_tile[kSimtDepth][kSimtTile + 4];
  const Weight4bitView& w = args.weight;
  const int tid = threadIdx.x;
  if (tid < 16) codebook[tid] = w.codebook[tid];
  __syncthreads();

  const int64_t cols = kGradX ? w.cols : args.rows;
  const int64_t depth = kGradX ? args.rows : w.cols;
  const int64_t col_tiles = (cols + kSimtTile - 1) / kSimtTile;
  const SimtRows rows = simt_rows<kSimtTile>(args, blockIdx.x / col_tiles);
  if (rows.begin >= rows.end) return;
  const int64_t m0 = rows.begin;
  const int64_t j0 = blockIdx.x % col_tiles * kSimtTile;
  const int ty = tid / 16;
  const int tx = tid % 16;
  const T* a = static_cast<const T*>(args.a);

  float total[4][4] = {};
  float sum[4][4] = {};
  int step = 0;
  for (int64_t r0 = 0; r0 < depth; r0 += kSimtDepth) {
    {
      const int row = tid / 4;
      const int r = tid % 4 * 8;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const bool inside = m0 + row < rows.end && r0 + r + i < depth;
        a_tile[r + i][row] = inside ? to_float(a[(m0 + row) * depth + r0 + r + i]) : 0.0f;
      }
      // Eight weights along their row: down the tile for the product, across it for the gradient.
      const int n_local = kGradX ? tid / 8 : tid / 4;
      const int k_local = kGradX ? tid % 8 * 8 : tid % 4 * 8;
      const int64_t n = (kGradX ? r0 : j0) + n_local;
      const int64_t k = (kGradX ? j0 : r0) + k_local;
      float values[8] = {};
      if (n < args.rows && k < w.cols) dequantize8(w, codebook, rows.weight + n, k, values);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if constexpr (kGradX) {
          b_tile[n_local][k_local + i] = values[i];
        } else {
          b_tile[k_local + i][n_local] = values[i];
        }
      }
    }
    __syncthreads();
#pragma unroll 8
    for (int r = 0; r < kSimtDepth; ++r) {
      const float4 av = *reinterpret_cast<const float4*>(&a_tile[r][ty * 4]);
      const float4 bv = *reinterpret_cast<const float4*>(&b_tile[r][tx * 4]);
      const float as[4] = {av.x, av.y, av.z, av.w};
      const float bs[4] = {bv.x, bv.y, bv.z, bv.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(as[i], bs[j], sum[i][j]);
      }
    }
    __syncthreads();
    if (++step == kSimtSumSteps || r0 + kSimtDepth >= depth) {
      step = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          total[i][j] += sum[i][j];
          sum[i][j] = 0.0f;
        }
      }
    }
  }

  const T* bias = static_cast<const T*>(args.bias);
  T* out = static_cast<T*>(args.out);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t m = m0 + ty * 4 + i;
    if (m >= rows.end) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t col = j0 + tx * 4 + j;
      if (col >= cols) continue;
      const float b = bias != nullptr ? to_float(bias[rows.weight + col]) : 0.0f;
      out[m * cols + col] = from_float<T>(total[i][j] + b);
    }
  }
}

// Run the plan of a product, or of the products of experts.
void launch_linear_4bit_simt(std::string_view op, const SimtArgs& args, DType dtype, const Linear4bitPlan& plan,
                             Stream stream);
void launch_linear_4bit_grad_x_simt(std::string_view op, const SimtArgs& args, DType dtype, const Linear4bitPlan& plan,
                                    Stream stream);

}  // namespace qbits::cuda
