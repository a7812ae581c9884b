#pragma once

#include "cuda/float_types.cuh"
#include "cuda/launch.h"

// The kernel under every quantizer whose blocks tile the flattened tensor: one read, maxima by shuffles,
// codes. A thread holds eight consecutive elements several times over; a block of up to 256 elements lies in
// one warp, larger ones in several warps of one thread block.
//
// An Input has load(i, n), giving eight values as something with float operator[].
// A Quantizer (passed by value) has
//   Shared, prepare(Shared&)                   tables, filled by all threads
//   kMaxima, observe(float, int (&)[kMaxima])  what a block must know: integer maxima of bit patterns
//   Block, finish(maxima, block index)         its scale and what encoding needs
//   write_scale(Block, block index)
//   encode(Shared, Block, float) -> code       for a real element or the zeros behind the end
//   store(i, n, codes)                         codes of elements i..i+7

namespace qbits::cuda {

inline constexpr int kQuantizeThreads = 512;
inline constexpr int kQuantizeChunk = kQuantizeThreads * 8;  // the largest block, 4096

// x / divisor, correctly rounded, for many x. Two corrections by exact remainders give the rounded quotient
// (Markstein, IBM J. Res. Dev. 34(1), 1990) where no intermediate can underflow; else the full division runs.
class Quotient {
 public:
  __device__ explicit Quotient(float divisor) {
    divisor_ = divisor;
    reciprocal_ = __frcp_rn(divisor);
    moderate_ = divisor >= 0x1p-60F && divisor <= 0x1p20F;
  }

  __device__ float operator()(float x) const {
    if (!moderate_ || fabsf(x) < 0x1p-100F) return __fdiv_rn(x, divisor_);
    const float estimate = __fmul_rn(x, reciprocal_);
    const float closer = __fmaf_rn(__fmaf_rn(-estimate, divisor_, x), reciprocal_, estimate);
    return __fmaf_rn(__fmaf_rn(-closer, divisor_, x), reciprocal_, closer);
  }

 private:
  float divisor_;
  float reciprocal_;
  bool moderate_;
};

template <class T, bool kAligned>
struct TensorInput {
  static constexpr int kUnroll = 16 / sizeof(T) / 2;  // 64 bytes a thread in flight
  const T* x;
  __device__ Eight<T> load(int64_t i, int64_t n) const { return load_eight<kAligned>(x, i, n); }
};

// The bits of |x|: integer order is magnitude order, with infinity and NaN on top.
__device__ inline int magnitude_bits(float x) { return __float_as_int(x) & 0x7fffffff; }

template <class Input, class Quantizer, bool kWide>
__global__ void __launch_bounds__(kQuantizeThreads)
    quantize_blocks(const __grid_constant__ Input input, int64_t n, int log2_block,
                    const __grid_constant__ Quantizer quantizer) {
  constexpr int kUnroll = Input::kUnroll;
  constexpr int kMaxima = Quantizer::kMaxima;
  __shared__ typename Quantizer::Shared shared;
  __shared__ int warp_maxima[kWide ? kUnroll * kMaxima : 1][kQuantizeThreads / 32];

  const int thread = static_cast<int>(threadIdx.x);
  const int64_t start = static_cast<int64_t>(blockIdx.x) * (kUnroll * kQuantizeChunk) + thread * 8;
  decltype(input.load(0, 0)) x[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) x[u] = input.load(start + u * kQuantizeChunk, n);

  quantizer.prepare(shared);
  int maxima[kUnroll][kMaxima] = {};
  const int lanes = kWide ? 32 : 1 << (log2_block - 3);
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
    for (int i = 0; i < 8; ++i) Quantizer::observe(x[u][i], maxima[u]);
#pragma unroll
    for (int k = 0; k < kMaxima; ++k) {
      for (int offset = lanes / 2; offset > 0; offset /= 2) {
        maxima[u][k] = max(maxima[u][k], __shfl_xor_sync(0xffffffffU, maxima[u][k], offset));
      }
      if (kWide && thread % 32 == 0) warp_maxima[u * kMaxima + k][thread / 32] = maxima[u][k];
    }
  }
  __syncthreads();
  if constexpr (kWide) {
    const int warps = 1 << (log2_block - 8);
    const int first = thread / 32 & ~(warps - 1);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int k = 0; k < kMaxima; ++k) {
        for (int w = first; w < first + warps; ++w) maxima[u][k] = max(maxima[u][k], warp_maxima[u * kMaxima + k][w]);
      }
    }
  }

#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = start + u * kQuantizeChunk;
    if (i >= n) break;
    const int64_t index = i >> log2_block;
    const typename Quantizer::Block block = quantizer.finish(maxima[u]);
    if ((i & ((int64_t{1} << log2_block) - 1)) == 0) quantizer.write_scale(block, index);
    uint32_t codes[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) codes[k] = quantizer.encode(shared, block, x[u][k]);
    quantizer.store(i, n, codes);
  }
}

// `block_size` is a power of two from 16 to 4096.
template <class Input, class Quantizer>
void launch_quantize_blocks(std::string_view op, const Input& input, int64_t n, int64_t block_size,
                            const Quantizer& quantizer, Stream stream) {
  const int log2_block = exact_log2(block_size);
  if (log2_block < 4 || log2_block > 12) {
    throw Error(ErrorCode::Unsupported, "[" + std::string(op) + "] block size: got " + std::to_string(block_size) +
                                            ", want a power of two from 16 to 4096");
  }
  const LaunchShape shape{.blocks = ceil_div(n, Input::kUnroll * kQuantizeChunk), .threads = kQuantizeThreads};
  dispatch_bool(block_size > 256, [&](auto wide) {
    launch(op, quantize_blocks<Input, Quantizer, wide>, shape, stream, input, n, log2_block, quantizer);
  });
}

// Stores of eight codes, of which those from element n on do not exist.
__device__ inline void store_nibbles(uint8_t* codes, bool aligned, int64_t i, int64_t n, const uint32_t (&c)[8]) {
  uint32_t word = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) word |= (c[2 * k] << 4 | c[2 * k + 1]) << (8 * k);
  if (aligned && i + 8 <= n) {
    *reinterpret_cast<uint32_t*>(codes + i / 2) = word;
  } else {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (i + 2 * k < n) codes[i / 2 + k] = static_cast<uint8_t>(word >> (8 * k));
    }
  }
}

__device__ inline void store_bytes(uint8_t* codes, bool aligned, int64_t i, int64_t n, const uint32_t (&c)[8]) {
  if (aligned && i + 8 <= n) {
    *reinterpret_cast<uint2*>(codes + i) =
        make_uint2(c[0] | c[1] << 8 | c[2] << 16 | c[3] << 24, c[4] | c[5] << 8 | c[6] << 16 | c[7] << 24);
  } else {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      if (i + k < n) codes[i + k] = static_cast<uint8_t>(c[k]);
    }
  }
}

}  // namespace qbits::cuda
