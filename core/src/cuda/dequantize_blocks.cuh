#pragma once

#include "cuda/decoders.cuh"

// The kernel under every dequantizer whose blocks tile the flattened tensor and are multiples of 8 elements.

namespace qbits::cuda {

inline constexpr int kDequantizeThreads = 256;

// Vectors a thread has in flight: 32 elements of any dtype.
template <class T>
inline constexpr int kDequantizeUnroll = 32 / kPerVector<T>;

template <class T, class Decoder, bool kAligned>
__global__ void __launch_bounds__(kDequantizeThreads)
    dequantize_blocks(const __grid_constant__ Decoder decoder, const uint8_t* codes, Divisor divisor, int64_t n,
                      T* out) {
  constexpr int kVector = kPerVector<T>;
  constexpr int kUnroll = kDequantizeUnroll<T>;
  constexpr int kTile = kDequantizeThreads * kVector;
  __shared__ typename Decoder::Shared shared;
  const int64_t start = static_cast<int64_t>(blockIdx.x) * (kUnroll * kTile) + threadIdx.x * kVector;
  PackedCodes<Decoder::kBits, kVector> packed[kUnroll];
  typename Decoder::Raw scales[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = start + u * kTile;
    if (i >= n) break;
    packed[u] = PackedCodes<Decoder::kBits, kVector>::template load<kAligned>(codes, i, n);
    scales[u] = decoder.load(divisor(i));
  }
  decoder.prepare(shared);
  __syncthreads();
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int64_t i = start + u * kTile;
    if (i >= n) break;
    const uint4 vector = decode_vector<T, Decoder>(shared, Decoder::scale(shared, scales[u]), packed[u]);
    if (kAligned && i + kVector <= n) {
      *reinterpret_cast<uint4*>(out + i) = vector;
    } else {
      const T* elements = reinterpret_cast<const T*>(&vector);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        if (i + k < n) out[i + k] = elements[k];
      }
    }
  }
}

template <class T, class Decoder>
void launch_dequantize_blocks(std::string_view op, const Decoder& decoder, const uint8_t* codes, int64_t block_size,
                              int64_t n, T* out, Stream stream) {
  constexpr int64_t kPerBlock = int64_t{kDequantizeUnroll<T>} * kDequantizeThreads * kPerVector<T>;
  const LaunchShape shape{.blocks = ceil_div(n, kPerBlock), .threads = kDequantizeThreads};
  dispatch_bool(is_aligned(codes, 8) && is_aligned(out, 16), [&](auto aligned) {
    launch(op, dequantize_blocks<T, Decoder, aligned>, shape, stream, decoder, codes, Divisor(block_size), n, out);
  });
}

}  // namespace qbits::cuda
