#pragma once

#include "cuda/linear_4bit_mma_parts.cuh"
#include "cuda/linear_4bit_staging.cuh"

// The gradient of linear_4bit for x, out[m, k] = sum over n of grad[m, n] W[n, k], on the tensor cores. Scales
// change along the sum here, so a block dequantizes each 32 x 128 weight tile to T in shared memory (one rounding
// of the float32 value) while the tensor cores work on the tile before.

namespace qbits::cuda {

struct GradXMmaArgs {
  const void* grad;
  void* out;
  float* products;  // [splits, m, k] if there are several splits
  int64_t m;
  int64_t split_depth;
  int splits;
  Weight4bitView weight;
  int64_t rows;                      // of the weight; of one expert's
  const int32_t* offsets = nullptr;  // of experts, if there are any
  int experts = 0;
};

template <int kTile>
struct GradXMmaLayout {
  static constexpr Linear4bitTile kShape = kLinear4bitGradXTiles[kTile];
  static constexpr int kMinBlocks = kShape.m <= 32 ? 2 : 1;
};

// Sixteen weights of one row, as loaded.
struct RawWeights {
  uint2 codes;
  RawScale scale;
};

template <class T, MmaIsa kIsa, int kTile>
__global__ void __launch_bounds__(kMmaThreads, GradXMmaLayout<kTile>::kMinBlocks)
    linear_4bit_grad_x_mma_kernel(const __grid_constant__ GradXMmaArgs args) {
  constexpr Linear4bitTile kShape = GradXMmaLayout<kTile>::kShape;
  constexpr int kStages = Linear4bitShared::grad_x_stages(kIsa);
  constexpr int kGradPitch = kShape.k * 2;
  constexpr int kGradBytes = kShape.m * kGradPitch;
  constexpr int kWeightPitch = kShape.n * 2;
  constexpr int kWeightBytes = kShape.k * kWeightPitch;
  constexpr int kGradChunks = kShape.k / 8;
  constexpr int kWeightChunks = kShape.n / 8;
  constexpr int kRowTiles = kShape.m / kShape.warps_m / 16;
  constexpr int kColumnTiles = kShape.n / kShape.warps_n / 8;
  static_assert(kShape.k * kShape.n == kMmaThreads * 16 && kShape.warps_k == 1 && kColumnTiles % 2 == 0);

  __shared__ float values[16];  // of each code, before zero and scale
  __shared__ float nested_code[256];
  uint8_t* const grad_ring = dynamic_shared();
  uint8_t* const weight_tiles = grad_ring + kStages * kGradBytes;

  const Weight4bitView& w = args.weight;
  const int tid = threadIdx.x;
  const int warp = tid / 32;
  const int lane = tid % 32;
  const int warp_m = warp / kShape.warps_n;
  const int warp_n = warp % kShape.warps_n;
  const MmaTile at = mma_tile<kShape.m, kShape.n>(args.m, w.cols, args.offsets, args.experts, args.rows);
  if (at.m0 >= at.m_end) return;
  const int64_t m0 = at.m0;
  const int64_t k0 = at.column;
  const int64_t n_begin = at.split * args.split_depth;
  const int64_t n_end = n_begin + args.split_depth < args.rows ? n_begin + args.split_depth : args.rows;
  const int iterations = static_cast<int>((n_end - n_begin + kShape.k - 1) / kShape.k);

  if (tid < 16) values[tid] = w.affine ? static_cast<float>(tid) : w.codebook[tid];
  if (w.nested_absmax != nullptr) nested_code[tid] = w.nested_code[tid];
  __syncthreads();

  const T* const grad = static_cast<const T*>(args.grad);
  constexpr int kPieces = (kShape.m * kGradChunks + kMmaThreads - 1) / kMmaThreads;
  Staging<kIsa, kPieces> staging;
  const auto for_pieces = [&](auto action) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int e = tid + i * kMmaThreads;
      const int row = e / kGradChunks;
      const int chunk = e % kGradChunks;
      if (row < kShape.m) action(i, row, chunk, row * kGradPitch + swizzle_rows<kGradChunks>(row, chunk) * 16);
    }
  };
  const auto start_copies = [&](int it) {
    uint8_t* const tile = grad_ring + it % kStages * kGradBytes;
    const int64_t n0 = n_begin + int64_t{it} * kShape.k;
    for_pieces([&](int piece, int row, int chunk, int position) {
      const int64_t m = m0 + row;
      const int64_t n = n0 + chunk * 8;
      const bool valid = m < at.m_end && n < args.rows;
      staging.start(piece, tile + position, grad + (valid ? m * args.rows + n : 0), valid);
    });
  };
  const auto finish_copies = [&](int it) {
    uint8_t* const tile = grad_ring + it % kStages * kGradBytes;
    for_pieces([&](int piece, int, int, int position) { staging.finish(piece, tile + position); });
  };

  const int weight_row = tid / (kShape.n / 16);
  const int weight_column = tid % (kShape.n / 16) * 16;
  const auto load_weights = [&](int it) {
    RawWeights raw{};
    const int64_t n = n_begin + int64_t{it} * kShape.k + weight_row;
    const int64_t k = k0 + weight_column;
    if (n < args.rows && k < w.cols) {
      const int64_t row = at.base + n;
      raw.codes = *reinterpret_cast<const uint2*>(w.codes + ((row * w.cols + k) >> 1));
      raw.scale = w.affine ? load_scale<true>(w, row, k) : load_scale<false>(w, row, k);
    }
    return raw;
  };
  const auto store_weights = [&](int it, const RawWeights& raw) {
    // Outside the weight the scale is 0, whatever the rest.
    const int64_t n = n_begin + int64_t{it} * kShape.k + weight_row;
    const bool valid = n < args.rows && k0 + weight_column < w.cols;
    const float zero = w.affine ? raw.scale.second : 0.0F;
    const float scale = w.affine ? raw.scale.first : finish_absmax(w, nested_code, raw.scale);
    uint32_t packed[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t byte = (i < 4 ? raw.codes.x : raw.codes.y) >> (8 * (i % 4));
      const float first = __fmul_rn(__fsub_rn(values[byte >> 4 & 15], zero), scale);
      const float second = __fmul_rn(__fsub_rn(values[byte & 15], zero), scale);
      packed[i] = valid ? pack<T>(first, second) : 0;
    }
    uint8_t* const row = weight_tiles + (it & 1) * kWeightBytes + weight_row * kWeightPitch;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int chunk = swizzle_rows<kWeightChunks>(weight_row, weight_column / 8 + half);
      *reinterpret_cast<uint4*>(row + chunk * 16) =
          make_uint4(packed[4 * half], packed[4 * half + 1], packed[4 * half + 2], packed[4 * half + 3]);
    }
  };

  for (int s = 0; s < kStages - 1; ++s) {
    if (s < iterations) start_copies(s);
    staging.commit();
  }
  store_weights(0, load_weights(0));
  finish_copies(0);
  RawWeights next = load_weights(1);

  float sums[kRowTiles][kColumnTiles][4] = {};
  for (int it = 0; it < iterations; ++it) {
    staging.wait(kStages - 2);
    __syncthreads();
    // Everybody is past step it - 1: its grad slot and the other weight tile are free.
    const int ahead = it + kStages - 1;
    if (ahead < iterations) start_copies(ahead);
    staging.commit();
    if (it + 1 < iterations) store_weights(it + 1, next);
    if (it + 2 < iterations) next = load_weights(it + 2);

    const uint8_t* const grad_tile = grad_ring + it % kStages * kGradBytes;
    const uint8_t* const weight_tile = weight_tiles + (it & 1) * kWeightBytes;
    const int fragment_row = lane % 16;  // ldmatrix: lanes 0-15 address the first chunk of 16 rows, 16-31 the next
#pragma unroll
    for (int step = 0; step < kShape.k / 16; ++step) {
      uint32_t a[kRowTiles][4];
      uint32_t b[kColumnTiles / 2][4];
#pragma unroll
      for (int rt = 0; rt < kRowTiles; ++rt) {
        const int row = (warp_m * kRowTiles + rt) * 16 + fragment_row;
        const int chunk = swizzle_rows<kGradChunks>(row, step * 2 + lane / 16);
        load_matrices<false>(a[rt], shared_address(grad_tile + row * kGradPitch + chunk * 16));
      }
#pragma unroll
      for (int pair = 0; pair < kColumnTiles / 2; ++pair) {
        const int row = step * 16 + fragment_row;
        const int chunk = swizzle_rows<kWeightChunks>(row, warp_n * kColumnTiles + pair * 2 + lane / 16);
        load_matrices<true>(b[pair], shared_address(weight_tile + row * kWeightPitch + chunk * 16));
      }
#pragma unroll
      for (int rt = 0; rt < kRowTiles; ++rt) {
#pragma unroll
        for (int ct = 0; ct < kColumnTiles; ++ct) {
          mma_16x8x16<T, kIsa>(sums[rt][ct], a[rt], b[ct / 2][ct % 2 * 2], b[ct / 2][ct % 2 * 2 + 1]);
        }
      }
    }
    if (ahead < iterations) finish_copies(ahead);
  }
  staging.wait(0);

  const int g = lane / 4;
  const int t = lane % 4;
#pragma unroll
  for (int rt = 0; rt < kRowTiles; ++rt) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t m = m0 + (warp_m * kRowTiles + rt) * 16 + i / 2 * 8 + g;
      if (m >= at.m_end) continue;
#pragma unroll
      for (int ct = 0; ct < kColumnTiles; ++ct) {
        const int64_t k = k0 + (warp_n * kColumnTiles + ct) * 8 + 2 * t + i % 2;
        if (k >= w.cols) continue;
        const float sum = sums[rt][ct][i];
        if (args.splits > 1) {
          args.products[(at.split * args.m + m) * w.cols + k] = sum;
        } else {
          static_cast<T*>(args.out)[m * w.cols + k] = from_float<T>(sum);
        }
      }
    }
  }
}

// Runs the plan of a gradient, or of the gradients of experts.
void launch_linear_4bit_grad_x_mma(const GradXMmaArgs& args, DType dtype, const Linear4bitPlan& plan, Stream stream);

}  // namespace qbits::cuda
