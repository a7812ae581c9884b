#pragma once

#include "cuda/bins256.cuh"
#include "cuda/quantize_blocks.cuh"
#include "ops/blockwise.h"

namespace qbits::cuda {

// Encodes to an ascending 256-entry code read from device memory, by the thresholds ops/blockwise.h defines. The sign,
// the exponent and 7 bits of the mantissa of a quotient choose a bin, which knows its threshold. Thresholds that
// repeat, where entries do, count as one: what bins and search find is a rank among the distinct ones.
struct Codebook256Quantizer {
  using Block = CodebookBlock;
  static constexpr int kMaxima = 1;

  using Bins = Bins256<7, 38>;

  enum class Lookup {
    Codes,   // a bin holds one threshold at most, ranks are codes
    Ranks,   // the first alone
    Search,  // neither: thresholds are searched for ranks
  };

  struct Shared {
    Bins bins;
    float thresholds[256];  // the distinct ones, then infinity
    uint8_t codes[256];     // of each rank
    int distinct_of_warp[kQuantizeThreads / 32];
    uint32_t zero_codes;  // a word of them
    bool zeros_matter;    // a threshold is zero or next to it
    Lookup lookup;
  };

  const float* code;
  uint8_t* codes;
  float* absmax;

  // Thread t cares for threshold t, then for the distinct threshold t and its bins.
  __device__ void prepare(Shared& shared) const {
    static_assert(kQuantizeThreads == 256);
    const int t = static_cast<int>(threadIdx.x);
    float threshold = 0.0F;
    if (t < 255) {
      // Neighbouring thresholds are out of order only where entries repeat, by less than one entry: looking
      // back over the run of equal entries gives the running maximum.
      const float low = code[t];
      threshold = blockwise_threshold(low, code[t + 1], t);
      for (int j = t - 1; j >= 0 && code[j + 1] == low && code[j] == low; --j) {
        threshold = fmaxf(threshold, blockwise_threshold(code[j], low, j));
      }
      threshold += 0.0F;  // -0 to +0, which belongs to the positive bins
    }
    const int below_zero = __syncthreads_count(t < 255 && threshold < 0.0F);
    const int distinct = keep_distinct(shared, t, threshold);
    threshold = shared.thresholds[t];
    const bool exists = t < distinct;
    const bool next_to_zero = threshold == 0.0F || threshold == -0x1p-149F;
    const Bins::Part part = Bins::part(shared.thresholds, t, distinct);
    const bool in_range = fabsf(threshold) <= 1.0F && (fabsf(threshold) >= 0x1p-37F || next_to_zero);
    const bool regular = __syncthreads_and(!exists || (in_range && part.first <= part.last));
    const bool zeros_matter = __syncthreads_or(exists && next_to_zero);
    if (t == 0) {
      shared.zero_codes = static_cast<uint32_t>(below_zero) * 0x01010101U;
      shared.zeros_matter = zeros_matter;
      shared.lookup = !regular ? Lookup::Search : distinct < 255 ? Lookup::Ranks : Lookup::Codes;
    }
    if (regular) shared.bins.fill(t, part);
  }

  template <class Values>
  __device__ static void observe(const Values& x, int (&maxima)[1]) {
    maxima[0] = largest_magnitude(x);
  }
  __device__ static Block finish(const Shared& shared, const int (&maxima)[1]) {
    return Block(finite_magnitude(maxima[0]), shared.zeros_matter);
  }
  __device__ void write_scale(const Block& block, int64_t index) const { absmax[index] = block.absmax; }

  template <class Values>
  __device__ PackedRun<8> encode(const Shared& shared, const Block& block, const Values& values) const {
    PackedRun<8> packed;
    if (!(block.absmax > 0.0F)) {
#pragma unroll
      for (uint32_t& word : packed.words) word = shared.zero_codes;
      return packed;
    }
    if (shared.lookup != Lookup::Codes) return encode_by_rank(shared, block, values);
    float x[kRun];
    block.widen(values, x);
    return rank_by_bins(shared, block, x);
  }

 private:
  // Moves the distinct of 255 ascending thresholds, one of each thread, to the front; returns their number.
  __device__ static int keep_distinct(Shared& shared, int t, float threshold) {
    shared.thresholds[t] = threshold;
    __syncthreads();
    const bool is_new = t < 255 && (t == 0 || shared.thresholds[t - 1] != threshold);
    const uint32_t of_warp = __ballot_sync(0xffffffffU, is_new);
    if (t % 32 == 0) shared.distinct_of_warp[t / 32] = __popc(of_warp);
    const int distinct = __syncthreads_count(is_new);
    int rank = __popc(of_warp & ((1U << t % 32) - 1));
    for (int warp = 0; warp < t / 32; ++warp) rank += shared.distinct_of_warp[warp];
    if (is_new) {
      shared.thresholds[rank] = threshold;
      shared.codes[rank] = static_cast<uint8_t>(t);
    }
    if (t >= distinct) shared.thresholds[t] = __uint_as_float(kInfinityBits);
    if (t == 255) shared.codes[distinct] = 255;
    __syncthreads();
    return distinct;
  }

  template <class Values>
  __device__ static PackedRun<8> encode_by_rank(const Shared& shared, const Block& block, const Values& values) {
    PackedRun<8> packed;
    if (shared.lookup == Lookup::Search) {
      packed = rank_by_search(shared, block, values);
    } else {
      float x[kRun];
      block.widen(values, x);
      packed = rank_by_bins(shared, block, x);
    }
#pragma unroll
    for (uint32_t& word : packed.words) {
      word = shared.codes[word & 255] | shared.codes[word >> 8 & 255] << 8 | shared.codes[word >> 16 & 255] << 16 |
             static_cast<uint32_t>(shared.codes[word >> 24]) << 24;
    }
    return packed;
  }

  __device__ static PackedRun<8> rank_by_bins(const Shared& shared, const Block& block, const float (&x)[kRun]) {
    PackedRun<8> packed;
#pragma unroll
    for (int w = 0; w < kRun / 4; ++w) {
      uint32_t sums[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[k] = shared.bins.ranked(block.quotient(x[4 * w + k]), Bins::kScale * 0x1p-32F);
      packed.words[w] = top_bytes(sums[0], sums[1], sums[2], sums[3]);
    }
    return packed;
  }

  template <class Values>
  __device__ static PackedRun<8> rank_by_search(const Shared& shared, const Block& block, const Values& values) {
    float x[kRun];
#pragma unroll
    for (int k = 0; k < kRun; ++k) x[k] = values[k];
    // Volatile, or they are loaded before the loop over tiles, into more registers than there are.
    const volatile float* thresholds = shared.thresholds;
    union {
      PackedRun<8> packed;
      uint8_t bytes[kRun];
    } ranks;
#pragma unroll 1
    for (int k = 0; k < kRun; ++k) {
      const float q = __fdiv_rn(x[k], block.absmax);
      int below = 0;
#pragma unroll
      for (int step = 128; step > 0; step /= 2) below += q > thresholds[below + step - 1] ? step : 0;
      ranks.bytes[k] = static_cast<uint8_t>(below);
    }
    return ranks.packed;
  }
};

}  // namespace qbits::cuda
