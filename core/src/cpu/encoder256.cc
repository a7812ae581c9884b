#include "cpu/encoder256.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "ops/blockwise.h"

namespace qbits::cpu {
namespace {

// Rises with q, also within a bin, whatever its sign (encode256.inl.h has the same for vectors).
struct Position {
  int32_t bin;
  int32_t rest;
  bool tiny;  // shares its position with other numbers
};

Position position_of(float q) {
  const int32_t bits = std::bit_cast<int32_t>(q);
  const int32_t magnitude = bits & 0x7fffffff;
  const int32_t clamped = std::clamp(magnitude, Encoder256::kSmallest, 0x3f800000);
  const int32_t bin = (clamped - Encoder256::kSmallest) >> Encoder256::kShift;
  const int32_t rest = clamped & Encoder256::kRest;
  return {.bin = Encoder256::kBinsPerSign + (bits < 0 ? ~bin : bin),
          .rest = bits < 0 ? rest ^ Encoder256::kRest : rest,
          .tiny = magnitude < Encoder256::kSmallest};
}

}  // namespace

Encoder256 make_encoder256(const float* code) {
  Encoder256 encoder;
  std::fill(encoder.thresholds + 255, std::end(encoder.thresholds), std::numeric_limits<float>::infinity());
  encoder.zero_code = 0;
  float last = -std::numeric_limits<float>::infinity();
  int32_t filled = 0;  // bins below have their entries
  int in_bin = 0;
  int most = 0;
  bool tiny = false;
  for (int32_t i = 0; i < 255; ++i) {
    // Adding zero turns -0 into +0, which belongs to the bins of positive numbers.
    last = std::max(last, blockwise_threshold(code[i], code[i + 1], i) + 0.0F);
    encoder.thresholds[i] = last;
    if (0.0F > last) encoder.zero_code = static_cast<uint8_t>(i + 1);
    const Position position = position_of(last);
    in_bin = position.bin < filled ? in_bin + 1 : 1;
    most = std::max(most, in_bin);
    tiny |= position.tiny;
    if (position.bin < filled) continue;
    const int32_t none = i << Encoder256::kShift | Encoder256::kRest;
    std::fill(encoder.bins + filled, encoder.bins + position.bin, none);
    encoder.bins[position.bin] = i << Encoder256::kShift | position.rest;
    filled = position.bin + 1;
  }
  std::fill(encoder.bins + filled, std::end(encoder.bins), 255 << Encoder256::kShift | Encoder256::kRest);
  encoder.levels = tiny || most > 1 ? std::bit_width(static_cast<unsigned>(most)) : 0;
  return encoder;
}

}  // namespace qbits::cpu
