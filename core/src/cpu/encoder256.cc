#include "cpu/encoder256.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "ops/blockwise.h"

namespace qbits::cpu {

int32_t bin_of(float q) {
  const int32_t bits = std::bit_cast<int32_t>(q);
  const int32_t magnitude = std::clamp(bits & 0x7fffffff, Encoder256::kSmallest, 0x3f800000);
  const int32_t bin = (magnitude - Encoder256::kSmallest) >> Encoder256::kShift;
  return Encoder256::kBinsPerSign + (bits < 0 ? ~bin : bin);
}

Encoder256 make_encoder256(const float* code) {
  Encoder256 encoder;
  std::fill(std::begin(encoder.thresholds), std::end(encoder.thresholds), std::numeric_limits<float>::infinity());
  float last = -std::numeric_limits<float>::infinity();
  int32_t filled = 0;
  int in_bin = 0;
  int most = 1;
  for (int i = 0; i < 255; ++i) {
    // Adding zero turns -0 into +0, which belongs to the bin of positive numbers.
    last = std::max(last, blockwise_threshold(code[i], code[i + 1], i) + 0.0F);
    encoder.thresholds[i] = last;
    const int32_t bin = bin_of(last);
    in_bin = bin < filled ? in_bin + 1 : 1;
    most = std::max(most, in_bin);
    for (; filled <= bin; ++filled) encoder.start[filled] = static_cast<uint8_t>(i);
  }
  std::fill(encoder.start + filled, std::end(encoder.start), uint8_t{255});
  encoder.levels = std::bit_width(static_cast<unsigned>(most));
  encoder.zero_code = static_cast<uint8_t>(
      std::count_if(encoder.thresholds, encoder.thresholds + 255, [](float t) { return 0.0F > t; }));
  return encoder;
}

}  // namespace qbits::cpu
