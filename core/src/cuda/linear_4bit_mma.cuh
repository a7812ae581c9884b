#pragma once

#include <bit>

#include "cuda/linear_4bit_codebook.cuh"
#include "cuda/linear_4bit_mma_parts.cuh"
#include "cuda/linear_4bit_staging.cuh"

// linear_4bit on the tensor cores, straight from the bytes of the checkpoint. Weight rows are the 16-row operand
// of mma.m16n8k16, dequantized in registers; rows of x are its 8 columns. A sum of products does not care in
// which order both operands number the depth, so each of the four lanes of a quad takes 8 codes that lie side by
// side: one 32-bit word of codes and 16 bytes of x feed two instructions. Scales are applied in float32 to the
// sums of 32 or 64 products.

namespace qbits::cuda {

inline constexpr int kMmaWarpRows = 32;   // weight rows of a warp: two operands of 16
inline constexpr int kMmaWarpDepth = 64;  // depth of a warp in one stage

struct MmaArgs {
  const void* x;
  const void* bias;
  void* out;
  float* products;  // [splits, m, n] if there are several splits
  int64_t m;
  int64_t split_depth;
  int splits;
  int stages;
  OperandCodebook codebook;
  Weight4bitView weight;
  int64_t rows;                      // of the weight; of one expert's
  const int32_t* offsets = nullptr;  // of experts, if there are any
  int experts = 0;
};

// As swizzle_rows, for x, whose rows are read in pairs, four chunks each.
__host__ __device__ constexpr int swizzle_x(int row, int chunk) { return chunk ^ ((row & 1) << 2); }

// Offsets in a stage of the ring: codes, x, scales (and zeros).
template <MmaIsa kIsa, int kTile, int kChunk, bool kAffine>
struct MmaLayout {
  static constexpr Linear4bitTile kShape = kLinear4bitTiles[kTile];
  static constexpr int kXOffset = Linear4bitShared::codes(kShape);
  static constexpr int kScaleOffset = kXOffset + Linear4bitShared::x(kShape);
  static constexpr int kStageBytes = Linear4bitShared::stage(kShape, kChunk, kAffine);
  static constexpr int kMinBlocks = mma_blocks_per_sm(kIsa, kShape, kAffine);
  static constexpr int kLutCopies = Linear4bitShared::lut_copies(kIsa, kShape, kChunk, kAffine);
};

template <class T, MmaIsa kIsa, bool kAffine, int kTile, int kChunk>
__global__ void __launch_bounds__(kMmaThreads, (MmaLayout<kIsa, kTile, kChunk, kAffine>::kMinBlocks))
    linear_4bit_mma_kernel(const __grid_constant__ MmaArgs args) {
  using Layout = MmaLayout<kIsa, kTile, kChunk, kAffine>;
  constexpr Linear4bitTile kShape = Layout::kShape;
  constexpr int kStageBytes = Layout::kStageBytes;
  constexpr int kXOffset = Layout::kXOffset;
  constexpr int kScaleOffset = Layout::kScaleOffset;
  constexpr int kCodeChunks = kShape.k / 32;  // 16-byte chunks in a row of codes
  constexpr int kXChunks = kShape.k / 8;      // and of x
  constexpr int kCodePitch = kShape.k / 2;
  constexpr int kXPitch = kShape.k * 2;
  constexpr int kScaleRows = kShape.k / kChunk;
  constexpr int kScales = kScaleRows * kShape.n;
  constexpr int kThreadScales = (kScales + kMmaThreads - 1) / kMmaThreads;
  constexpr int kColumns = kShape.m / kShape.warps_m / 8;  // 8-column tiles of a warp
  constexpr int kSteps = kChunk / 32;
  constexpr int kLutCopies = Layout::kLutCopies;
  constexpr int kLutBytes = kLutCopies * Linear4bitShared::kPairBytes;
  static_assert(kShape.warps_m * kShape.warps_n * kShape.warps_k == kMmaThreads / 32);
  static_assert(kShape.n == kShape.warps_n * kMmaWarpRows && kShape.k == kShape.warps_k * kMmaWarpDepth);

  const Weight4bitView& w = args.weight;
  const int tid = threadIdx.x;
  const int warp = tid / 32;
  const int g = tid % 32 / 4;  // the fragment's row in a group of 8, and its column of x
  const int t = tid % 4;       // the lane of the quad
  const int warp_n = warp % kShape.warps_n;
  const int warp_m = warp / kShape.warps_n % kShape.warps_m;
  const int warp_k = warp / (kShape.warps_n * kShape.warps_m);

  const MmaTile at = mma_tile<kShape.m, kShape.n>(args.m, args.rows, args.offsets, args.experts, args.rows);
  if (at.m0 >= at.m_end) return;
  const int64_t m0 = at.m0;
  const int64_t n0 = at.column;
  const int64_t k_begin = at.split * args.split_depth;
  const int64_t k_end = k_begin + args.split_depth < w.cols ? k_begin + args.split_depth : w.cols;
  const int iterations = static_cast<int>((k_end - k_begin + kShape.k - 1) / kShape.k);

  uint8_t* const memory = dynamic_shared();
  uint8_t* const table = memory;
  float* const nested_code = reinterpret_cast<float*>(memory + kLutBytes);
  uint8_t* const ring = memory + kLutBytes + Linear4bitShared::kNestedCodeBytes;

  // A pass of all threads copies whole rows; the passes of a thread differ in the row alone, by a multiple of 8
  // (codes) or 2 (x), so that they share one swizzled position.
  constexpr int kCodeRows = kMmaThreads / kCodeChunks;
  constexpr int kXRows = kMmaThreads / kXChunks;
  constexpr int kCodePieces = kShape.n / kCodeRows;
  constexpr int kXPieces = kShape.m / kXRows;
  static_assert(kCodeRows % 8 == 0 && kXRows % 2 == 0);
  const int code_row = tid / kCodeChunks;
  const int code_k = tid % kCodeChunks * 32;
  const int code_position = code_row * kCodePitch + swizzle_rows<kCodeChunks>(code_row, tid % kCodeChunks) * 16;
  const uint8_t* const code_source = w.codes + (((at.base + n0 + code_row) * w.cols + code_k) >> 1);
  const int x_row = tid / kXChunks;
  const int x_k = tid % kXChunks * 8;
  const int x_position = kXOffset + x_row * kXPitch + swizzle_x(x_row, tid % kXChunks) * 16;
  const T* const x_source = static_cast<const T*>(args.x) + (m0 + x_row) * w.cols + x_k;
  const int64_t left_n = args.rows - n0 - code_row;
  const int64_t left_m = at.m_end - m0 - x_row;
  const int valid_n = left_n < kShape.n ? static_cast<int>(left_n) : kShape.n;
  const int valid_m = left_m < kShape.m ? static_cast<int>(left_m) : kShape.m;
  Staging<kIsa, kCodePieces + kXPieces> staging;
  const auto start_copies = [&](int slot, int64_t k0) {
    uint8_t* const stage = ring + slot * kStageBytes;
#pragma unroll
    for (int i = 0; i < kCodePieces; ++i) {
      const bool valid = i * kCodeRows < valid_n && k0 + code_k < w.cols;
      staging.start(i, stage + code_position + i * kCodeRows * kCodePitch,
                    valid ? code_source + ((i * kCodeRows * w.cols + k0) >> 1) : w.codes, valid);
    }
#pragma unroll
    for (int i = 0; i < kXPieces; ++i) {
      const bool valid = i * kXRows < valid_m && k0 + x_k < w.cols;
      staging.start(kCodePieces + i, stage + x_position + i * kXRows * kXPitch,
                    valid ? static_cast<const void*>(x_source + i * kXRows * w.cols + k0) : args.x, valid);
    }
  };
  const auto finish_copies = [&](int slot) {
    uint8_t* const stage = ring + slot * kStageBytes;
#pragma unroll
    for (int i = 0; i < kCodePieces; ++i) staging.finish(i, stage + code_position + i * kCodeRows * kCodePitch);
#pragma unroll
    for (int i = 0; i < kXPieces; ++i) staging.finish(kCodePieces + i, stage + x_position + i * kXRows * kXPitch);
  };
  const auto load_scales = [&](int64_t k0, RawScale(&raw)[kThreadScales]) {
#pragma unroll
    for (int i = 0; i < kThreadScales; ++i) {
      const int e = tid + i * kMmaThreads;
      const int64_t n = n0 + e / kScaleRows;
      const int64_t k = k0 + e % kScaleRows * kChunk;
      raw[i] = RawScale{};
      if (e < kScales && n < args.rows && k < w.cols) raw[i] = load_scale<kAffine>(w, at.base + n, k);
    }
  };
  const auto store_scales = [&](int slot, const RawScale(&raw)[kThreadScales]) {
    float* const scales = reinterpret_cast<float*>(ring + slot * kStageBytes + kScaleOffset);
#pragma unroll
    for (int i = 0; i < kThreadScales; ++i) {
      const int e = tid + i * kMmaThreads;
      if (e >= kScales) continue;
      const int position = e % kScaleRows * kShape.n + e / kScaleRows;
      if constexpr (kAffine) {
        scales[position] = raw[i].first;
        scales[kScales + position] = raw[i].second - kAffineCentre;
      } else {
        scales[position] = finish_absmax(w, nested_code, raw[i]) * args.codebook.factor;
      }
    }
  };

  for (int s = 0; s < args.stages - 1; ++s) {
    if (s < iterations) start_copies(s, k_begin + int64_t{s} * kShape.k);
    staging.commit();
  }
  {
    // The two values of each byte, best 32 times over: every lane has a bank of its own. The first element of a pair
    // is the high nibble of the byte and the low half of the operand.
    constexpr int kVectors = kLutCopies / 4;
    const uint4 pairs = lane_pairs(args.codebook.values[tid >> 4], args.codebook.values[tid & 15]);
    for (int i = 0; i < kVectors; ++i) {
      reinterpret_cast<uint4*>(table)[tid * kVectors + ((i + tid) & (kVectors - 1))] = pairs;
    }
    if (!kAffine && w.nested_absmax != nullptr) nested_code[tid] = w.nested_code[tid];
  }
  finish_copies(0);
  __syncthreads();
  for (int s = 0; s < args.stages - 1 && s < iterations; ++s) {
    RawScale raw[kThreadScales];
    load_scales(k_begin + int64_t{s} * kShape.k, raw);
    store_scales(s, raw);
  }

  const uint8_t* const lane_table = table + tid % kLutCopies * 4;
  // The operand pair of byte `i` of a word of codes.
  const auto look_up = [&](uint32_t word, int i) {
    constexpr int kShift = std::bit_width(static_cast<unsigned>(kLutCopies * 4)) - 1;
    const uint32_t offset = (i == 0 ? word << kShift : word >> (8 * i - kShift)) & 0xff << kShift;
    return *reinterpret_cast<const uint32_t*>(lane_table + offset);
  };

  float sums[2][kColumns][4] = {};
  int slot = 0;
  int free_slot = args.stages - 1;
  for (int it = 0; it < iterations; ++it) {
    staging.wait(args.stages - 2);
    __syncthreads();
    // Everybody is past stage it - 1, whose slot the next copies take.
    const int ahead = it + args.stages - 1;
    const int64_t k_ahead = k_begin + int64_t{ahead} * kShape.k;
    RawScale raw[kThreadScales];
    if (ahead < iterations) {
      start_copies(free_slot, k_ahead);
      load_scales(k_ahead, raw);
    }
    staging.commit();

    const uint8_t* const stage = ring + slot * kStageBytes;
    const uint8_t* const codes = stage + (warp_n * kMmaWarpRows + g) * kCodePitch + t * 4;
    const uint8_t* const columns = stage + kXOffset + (warp_m * kColumns * 8 + g) * kXPitch;
    const float* const scales = reinterpret_cast<const float*>(stage + kScaleOffset) + warp_n * kMmaWarpRows + g;
#pragma unroll 1  // a second copy of the body would only cost registers
    for (int chunk = 0; chunk < kMmaWarpDepth / kChunk; ++chunk) {
      uint32_t a[2][kSteps][8];
#pragma unroll
      for (int rt = 0; rt < 2; ++rt) {
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int position = swizzle_rows<kCodeChunks>(g, warp_k * 2 + chunk * kSteps + s) * 16;
          const uint8_t* const row = codes + rt * 16 * kCodePitch + position;
          const uint32_t upper = *reinterpret_cast<const uint32_t*>(row);
          const uint32_t lower = *reinterpret_cast<const uint32_t*>(row + 8 * kCodePitch);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            a[rt][s][2 * i] = look_up(upper, i);
            a[rt][s][2 * i + 1] = look_up(lower, i);
          }
        }
      }
      float scale[2][2];
      float zero[2][2];
#pragma unroll
      for (int rt = 0; rt < 2; ++rt) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = (warp_k * (kMmaWarpDepth / kChunk) + chunk) * kShape.n + rt * 16 + h * 8;
          scale[rt][h] = scales[row];
          if constexpr (kAffine) zero[rt][h] = scales[kScales + row];
        }
      }
#pragma unroll
      for (int ct = 0; ct < kColumns; ++ct) {
        float product[2][4] = {};
        float x_sum[4] = {};  // of each column of x, once per row of the operand
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int position = swizzle_x(g, (warp_k * kMmaWarpDepth + chunk * kChunk + s * 32) / 8 + t) * 16;
          const uint4 b = *reinterpret_cast<const uint4*>(columns + ct * 8 * kXPitch + position);
#pragma unroll
          for (int rt = 0; rt < 2; ++rt) {
            mma_16x8x16<T, kIsa>(product[rt], a[rt][s], b.x, b.y);
            mma_16x8x16<T, kIsa>(product[rt], a[rt][s] + 4, b.z, b.w);
          }
          if constexpr (kAffine) {
            constexpr uint32_t kOnes = std::is_same_v<T, __half> ? 0x3c003c00u : 0x3f803f80u;
            constexpr uint32_t kOnesRows[4] = {kOnes, kOnes, kOnes, kOnes};
            mma_16x8x16<T, kIsa>(x_sum, kOnesRows, b.x, b.y);
            mma_16x8x16<T, kIsa>(x_sum, kOnesRows, b.z, b.w);
          }
        }
#pragma unroll
        for (int rt = 0; rt < 2; ++rt) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float value = product[rt][i];
            if constexpr (kAffine) value = fmaf(-zero[rt][i / 2], x_sum[i % 2], value);
            sums[rt][ct][i] = fmaf(scale[rt][i / 2], value, sums[rt][ct][i]);
          }
        }
      }
    }

    if (ahead < iterations) {
      finish_copies(free_slot);
      store_scales(free_slot, raw);
    }
    free_slot = slot;
    slot = slot + 1 == args.stages ? 0 : slot + 1;
  }

  // Through shared memory, so that the warps that share a tile are added in order and rows of out leave whole.
  staging.wait(0);
  __syncthreads();
  float* const shared_sums = reinterpret_cast<float*>(memory);
  // Permuted so that the lanes of a fragment store to different banks.
  const auto sum_position = [&](int part, int m, int n) {
    return (part * kShape.m + m) * kShape.n + (n ^ (m / 2 & 3) << 3);
  };
#pragma unroll
  for (int ct = 0; ct < kColumns; ++ct) {
#pragma unroll
    for (int rt = 0; rt < 2; ++rt) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int m = warp_m * kColumns * 8 + ct * 8 + 2 * t + i % 2;
        const int n = warp_n * kMmaWarpRows + rt * 16 + i / 2 * 8 + g;
        shared_sums[sum_position(warp_k, m, n)] = sums[rt][ct][i];
      }
    }
  }
  __syncthreads();
  const T* const bias = static_cast<const T*>(args.bias);
  for (int e = tid; e < kShape.m * kShape.n; e += kMmaThreads) {
    const int64_t m = m0 + e / kShape.n;
    const int64_t n = n0 + e % kShape.n;
    if (m >= at.m_end || n >= args.rows) continue;
    float sum = 0.0F;
#pragma unroll
    for (int part = 0; part < kShape.warps_k; ++part) {
      sum += shared_sums[sum_position(part, e / kShape.n, e % kShape.n)];
    }
    if (args.splits > 1) {
      args.products[(at.split * args.m + m) * args.rows + n] = sum;
    } else {
      if (bias != nullptr) sum += to_float(bias[at.base + n]);
      static_cast<T*>(args.out)[m * args.rows + n] = from_float<T>(sum);
    }
  }
}

// Runs the instantiation of a plan; each (T, kIsa, kAffine) has a file of its own.
template <class T, MmaIsa kIsa, bool kAffine>
void launch_linear_4bit_mma(const MmaArgs& args, const Linear4bitPlan& plan, Stream stream);

extern template void launch_linear_4bit_mma<__nv_bfloat16, MmaIsa::Sm80, false>(const MmaArgs&, const Linear4bitPlan&,
                                                                                Stream);
extern template void launch_linear_4bit_mma<__nv_bfloat16, MmaIsa::Sm80, true>(const MmaArgs&, const Linear4bitPlan&,
                                                                               Stream);
extern template void launch_linear_4bit_mma<__half, MmaIsa::Sm80, false>(const MmaArgs&, const Linear4bitPlan&, Stream);
extern template void launch_linear_4bit_mma<__half, MmaIsa::Sm80, true>(const MmaArgs&, const Linear4bitPlan&, Stream);
extern template void launch_linear_4bit_mma<__half, MmaIsa::Sm75, false>(const MmaArgs&, const Linear4bitPlan&, Stream);
extern template void launch_linear_4bit_mma<__half, MmaIsa::Sm75, true>(const MmaArgs&, const Linear4bitPlan&, Stream);

}  // namespace qbits::cuda
