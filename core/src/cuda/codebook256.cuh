#pragma once

#include "cuda/quantize_blocks.cuh"
#include "ops/blockwise.h"

namespace qbits::cuda {

// Encodes to an ascending 256-entry code read from device memory, by the thresholds ops/blockwise.h defines.
struct Codebook256Quantizer {
  // Thresholds as a binary heap; eight steps from entry 1 end at 256 + index.
  struct Shared {
    float heap[256];
    float sorted[256];
  };
  struct Block {
    Quotient quotient;
    float absmax;
  };
  static constexpr int kMaxima = 1;

  const float* code;
  uint8_t* codes;
  float* absmax;
  bool aligned;

  __device__ void prepare(Shared& shared) const {
    const int i = static_cast<int>(threadIdx.x);
    if (i < 255) {
      // Neighbouring thresholds are out of order only where entries repeat, by less than one entry: looking
      // back over the run of equal entries gives the running maximum.
      const float low = code[i];
      float threshold = blockwise_threshold(low, code[i + 1], i);
      for (int j = i - 1; j >= 0 && code[j + 1] == low && code[j] == low; --j) {
        threshold = fmaxf(threshold, blockwise_threshold(code[j], low, j));
      }
      shared.sorted[i] = threshold;
    }
    __syncthreads();
    if (i > 0 && i < 256) {
      const int level = 31 - __clz(i);
      shared.heap[i] = shared.sorted[(2 * (i - (1 << level)) + 1) * (1 << (7 - level)) - 1];
    }
  }

  __device__ static void observe(float x, int (&maxima)[1]) { maxima[0] = max(maxima[0], magnitude_bits(x)); }

  __device__ static Block finish(const int (&maxima)[1]) {
    const bool finite = maxima[0] < static_cast<int>(kInfinityBits);
    const float absmax = finite ? __int_as_float(maxima[0]) : quiet_nan();
    return {Quotient(absmax), absmax};
  }

  __device__ void write_scale(const Block& block, int64_t index) const { absmax[index] = block.absmax; }

  __device__ uint32_t encode(const Shared& shared, const Block& block, float x) const {
    const float q = block.absmax > 0.0F ? block.quotient(x) : 0.0F;
    int node = 1;
#pragma unroll
    for (int level = 0; level < 8; ++level) node = 2 * node + (q > shared.heap[node] ? 1 : 0);
    return static_cast<uint32_t>(node - 256);
  }

  __device__ void store(int64_t i, int64_t n, const uint32_t (&c)[8]) const { store_bytes(codes, aligned, i, n, c); }
};

}  // namespace qbits::cuda
