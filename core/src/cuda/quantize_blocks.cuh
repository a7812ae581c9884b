#pragma once

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/quotient.cuh"

// The kernel under every quantizer whose blocks tile the flattened tensor: one read, maxima by shuffles,
// codes. A thread holds kRun consecutive elements, several times over; a block of up to 32 of them lies in one warp,
// larger ones in several warps of one thread block.
//
// An Input has load(i, valid), giving kRun values as something with float operator[], 0 behind the first `valid`; and,
// if kVectors, load(i) for whole runs, quicker because all memory is aligned. A Quantizer (passed by value) has
//   Shared, prepare(Shared&)                 tables, filled by all threads
//   kMaxima, observe(values, int (&)[kMaxima])  what a block must know: integer maxima of bit patterns
//   Block, finish(Shared, maxima)            its scale and what encoding needs
//   write_scale(Block, block index)
//   encode(Shared, Block, values)     packed codes of kRun elements, real ones or zeros behind the end
//   codes                                    where they go, aligned to the size of a run's if the Input is

namespace qbits::cuda {

inline constexpr int kRun = 16;  // the smallest block
inline constexpr int kQuantizeThreads = 256;
inline constexpr int kQuantizeBlocks = 4;                     // on a multiprocessor
inline constexpr int kQuantizeRow = kQuantizeThreads * kRun;  // the largest block, 4096
static_assert(kQuantizeRow >= 4096);

template <class T, bool kAligned>
struct TensorInput {
  static constexpr int kRuns = 64 / sizeof(T) / kRun;  // in flight in a thread: 64 bytes
  static constexpr bool kVectors = kAligned;
  const T* x;
  __device__ Run<T, kRun> load(int64_t i) const { return load_run<kRun>(x, i); }
  __device__ Run<T, kRun> load(int64_t i, int valid) const { return load_run<kRun>(x, i, valid); }
};

// The bits of the largest |x|: integer order is magnitude order, with infinity and NaN on top.
__device__ inline int magnitude_bits(float x) { return __float_as_int(x) & 0x7fffffff; }

template <class Values>
__device__ int largest_magnitude(const Values& x) {
  int largest = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i) largest = max(largest, magnitude_bits(x[i]));
  return largest;
}

template <class T>
  requires(sizeof(T) == 2)
__device__ int largest_magnitude(const Run<T, kRun>& x) {
  Pair<T> largest = __habs2(x.pair(0));
#pragma unroll
  for (int k = 1; k < kRun / 2; ++k) largest = __hmax2_nan(largest, __habs2(x.pair(k)));
  return magnitude_bits(to_float(__hmax_nan(largest.x, largest.y)));
}

// A magnitude from its bits, NaN for infinity and NaN.
__device__ inline float finite_magnitude(int bits) {
  return bits < static_cast<int>(kInfinityBits) ? __int_as_float(bits) : quiet_nan();
}

// A block of a codebook format.
struct CodebookBlock {
  float absmax;  // NaN if an element is not finite
  Quotient quotient;
  float negligible;  // the largest |x| whose quotient rounds to zero, where that matters

  __device__ CodebookBlock(float largest, bool zeros_matter) : absmax(largest), quotient(largest) {
    negligible = zeros_matter ? __fmul_rd(absmax * 0x1p-75F, 0x1p-75F) : 0.0F;
  }

  // The elements as `quotient` takes them.
  template <class Values>
  __device__ void widen(const Values& values, float (&x)[kRun]) const {
#pragma unroll
    for (int i = 0; i < kRun; ++i) x[i] = values[i];
    if (negligible > 0.0F || quotient.factor() != 1.0F) {
#pragma unroll
      for (int i = 0; i < kRun; ++i) x[i] = fabsf(x[i]) <= negligible ? 0.0F : x[i] * quotient.factor();
    }
  }
};

// Packed codes of kRun elements: of bytes in order, of nibbles with the first of two on top.
template <int kBits>
struct alignas(kBits* kRun / 8) PackedRun {
  static constexpr int kBytes = kBits * kRun / 8;
  uint32_t words[kBytes / 4];

  __device__ void store(uint8_t* codes, int64_t i) const {
    *reinterpret_cast<PackedRun*>(codes + i * kBits / 8) = *this;
  }
  // Those of the first `valid` elements.
  __device__ void store(uint8_t* codes, int64_t i, int valid) const {
#pragma unroll
    for (int k = 0; k < kBytes; ++k) {
      if (k * (8 / kBits) < valid) codes[i * kBits / 8 + k] = static_cast<uint8_t>(words[k / 4] >> (k % 4 * 8));
    }
  }
};

// The order in which codes of a word are shifted in, the last one to the lowest bits.
template <int kBits>
__device__ constexpr int shifted_in(int k) {
  return kBits == 4 ? (7 - k) ^ 1 : 3 - k;
}

// Quantizes the tiles of this thread block: those that are whole, then what is left.
template <bool kWide, class Input, class Quantizer>
class TileQuantizer {
 public:
  static constexpr int kTile = Input::kRuns * kQuantizeRow;

  __device__ TileQuantizer(const Input& input, int64_t n, int log2_block, const Quantizer& quantizer,
                           const typename Quantizer::Shared& shared)
      : input_(input), n_(n), log2_block_(log2_block), quantizer_(quantizer), shared_(shared) {}

  __device__ void run() {
    int64_t tile = blockIdx.x;
    if constexpr (Input::kVectors) {
      const int64_t whole = n_ / kTile;
      for (; tile < whole; tile += gridDim.x) quantize<true>(tile * kTile);
    }
    for (; tile * kTile < n_; tile += gridDim.x) quantize<false>(tile * kTile);
  }

 private:
  static constexpr int kRuns = Input::kRuns;
  static constexpr int kMaxima = Quantizer::kMaxima;
  using Values = decltype(std::declval<Input>().load(0, 0));

  template <bool kWhole>
  __device__ void quantize(int64_t start) {
    const int thread = static_cast<int>(threadIdx.x);
    const int64_t first = start + thread * kRun;
    const int left = kWhole ? kTile : static_cast<int>(min(n_ - start, int64_t{kTile}));
    const auto valid = [&](int u) { return left - u * kQuantizeRow - thread * kRun; };
    Values x[kRuns];
#pragma unroll
    for (int u = 0; u < kRuns; ++u) {
      if constexpr (kWhole) {
        x[u] = input_.load(first + u * kQuantizeRow);
      } else {
        x[u] = input_.load(first + u * kQuantizeRow, valid(u));
      }
    }
    int maxima[kRuns][kMaxima];
    find_maxima(x, maxima);
#pragma unroll
    for (int u = 0; u < kRuns; ++u) {
      const int64_t i = first + u * kQuantizeRow;
      const typename Quantizer::Block block = quantizer_.finish(shared_, maxima[u]);
      const auto packed = quantizer_.encode(shared_, block, x[u]);
      const bool begins_block = (thread * kRun & ((1 << log2_block_) - 1)) == 0;
      if (begins_block && (kWhole || valid(u) > 0)) quantizer_.write_scale(block, i >> log2_block_);
      if constexpr (kWhole) {
        packed.store(quantizer_.codes, i);
      } else {
        packed.store(quantizer_.codes, i, valid(u));
      }
    }
  }

  // What each block of the tile must know, in all of its threads.
  __device__ void find_maxima(const Values (&x)[kRuns], int (&maxima)[kRuns][kMaxima]) {
    const int lanes = kWide ? 32 : (1 << log2_block_) / kRun;
#pragma unroll
    for (int u = 0; u < kRuns; ++u) Quantizer::observe(x[u], maxima[u]);
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      if (offset == lanes) break;
#pragma unroll
      for (int u = 0; u < kRuns; ++u) {
#pragma unroll
        for (int k = 0; k < kMaxima; ++k) {
          maxima[u][k] = max(maxima[u][k], __shfl_xor_sync(0xffffffffU, maxima[u][k], offset));
        }
      }
    }
    if constexpr (kWide) {
      constexpr int kWarps = kQuantizeThreads / 32;
      __shared__ int of_warps[kRuns][kMaxima][kWarps];
      const int warp = static_cast<int>(threadIdx.x) / 32;
      __syncthreads();  // those of the tile before have been read
#pragma unroll
      for (int u = 0; u < kRuns; ++u) {
#pragma unroll
        for (int k = 0; k < kMaxima; ++k) of_warps[u][k][warp] = maxima[u][k];
      }
      __syncthreads();
      const int others = (1 << log2_block_) / (32 * kRun) - 1;  // warps of a block but one
#pragma unroll
      for (int u = 0; u < kRuns; ++u) {
#pragma unroll
        for (int k = 0; k < kMaxima; ++k) {
          for (int w = 1; w <= others; ++w) maxima[u][k] = max(maxima[u][k], of_warps[u][k][warp ^ w]);
        }
      }
    }
  }

  const Input& input_;
  int64_t n_;
  int log2_block_;
  const Quantizer& quantizer_;
  const typename Quantizer::Shared& shared_;
};

template <bool kWide, class Input, class Quantizer>
__global__ void __launch_bounds__(kQuantizeThreads, kQuantizeBlocks)
    quantize_blocks(const __grid_constant__ Input input, int64_t n, int log2_block,
                    const __grid_constant__ Quantizer quantizer) {
  __shared__ typename Quantizer::Shared shared;
  quantizer.prepare(shared);
  __syncthreads();
  TileQuantizer<kWide, Input, Quantizer>(input, n, log2_block, quantizer, shared).run();
}

// `block_size` is a power of two from 16 to 4096. No more thread blocks than the device runs at once, for their tables.
template <class Input, class Quantizer>
void launch_quantize_blocks(std::string_view op, const Input& input, int64_t n, int64_t block_size,
                            const Quantizer& quantizer, Stream stream) {
  const int log2_block = exact_log2(block_size);
  if (log2_block < 4 || log2_block > 12) {
    throw Error(ErrorCode::Unsupported, "[" + std::string(op) + "] block size: got " + std::to_string(block_size) +
                                            ", want a power of two from 16 to 4096");
  }
  dispatch_bool(block_size > 32 * kRun, [&](auto wide) {
    auto* kernel = quantize_blocks<wide, Input, Quantizer>;
    int64_t blocks = ceil_div(n, Input::kRuns * kQuantizeRow);
    blocks = std::min<int64_t>(blocks, kQuantizeBlocks * device_attribute(cudaDevAttrMultiProcessorCount, op));
    launch(op, kernel, {.blocks = blocks, .threads = kQuantizeThreads}, stream, input, n, log2_block, quantizer);
  });
}

}  // namespace qbits::cuda
