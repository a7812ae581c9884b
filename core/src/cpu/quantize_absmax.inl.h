#include "cpu/encode256.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

double absmax_chunk_sum(const float* absmax, int64_t n) {
  constexpr int kTogether = 32;  // accumulators that stay in registers
  double lanes[kMeanLanes];
  const int64_t whole = n / kMeanLanes * kMeanLanes;
  for (int first = 0; first < kMeanLanes; first += kTogether) {
    double sums[kTogether] = {};
    for (int64_t i = first; i < whole; i += kMeanLanes) {
      for (int j = 0; j < kTogether; ++j) sums[j] += static_cast<double>(absmax[i + j]);
    }
    for (int j = 0; j < kTogether; ++j) lanes[first + j] = sums[j];
  }
  for (int64_t i = whole; i < n; ++i) lanes[i - whole] += static_cast<double>(absmax[i]);
  for (int half = kMeanLanes / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

void quantize_absmax_blocks(const QuantizeAbsmaxArgs& args, const Encoder256& encoder, float offset, int64_t begin,
                            int64_t end) {
  float centered[kNestedBlockSize];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t start = block * kNestedBlockSize;
    const int64_t n = start + kNestedBlockSize <= args.n ? kNestedBlockSize : args.n - start;
    for (int64_t i = 0; i < n; ++i) centered[i] = args.absmax[start + i] - offset;
    args.nested_absmax[block] = quantize_block256(encoder, centered, n, args.values + start);
  }
}
