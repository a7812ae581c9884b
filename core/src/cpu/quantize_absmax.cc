#include <algorithm>
#include <cmath>

#include "cpu/quantize_absmax_kernel.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {
namespace {

float mean(const float* absmax, int64_t n) {
  constexpr int64_t kTogether = 512;  // chunks summed in parallel before their sums are added in order
  double sums[kTogether];
  double total = 0.0;
  const int64_t chunks = (n - 1) / kMeanChunk + 1;
  for (int64_t first = 0; first < chunks; first += kTogether) {
    const int64_t count = std::min(kTogether, chunks - first);
    parallel_for(count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t start = (first + i) * kMeanChunk;
        sums[i] = absmax_chunk_sum_isa(absmax + start, std::min(kMeanChunk, n - start));
      }
    });
    for (int64_t i = 0; i < count; ++i) total += sums[i];
  }
  const float mean = static_cast<float>(total / static_cast<double>(n));
  return std::isnan(mean) ? __builtin_bit_cast(float, 0x7fc00000) : mean;
}

}  // namespace

void quantize_absmax(const QuantizeAbsmaxArgs& args) {
  const Encoder256 encoder = make_encoder256(args.nested_code);
  const float offset = mean(args.absmax, args.n);
  *args.offset = offset;
  const int64_t blocks = (args.n - 1) / kNestedBlockSize + 1;
  parallel_for(blocks, 64,
               [&](int64_t begin, int64_t end) { quantize_absmax_blocks_isa(args, encoder, offset, begin, end); });
}

}  // namespace qbits::cpu
