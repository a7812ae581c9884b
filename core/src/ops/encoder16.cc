#include "ops/encoder16.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace qbits {
namespace {

// The largest float q for which q still rounds down to `low` rather than up to `high`.
float threshold_between(float low, float high, bool tie_goes_low) {
  if (low == high) return -std::numeric_limits<float>::denorm_min();  // -0 | +0: any negative value is below
  const double middle = (static_cast<double>(low) + high) / 2;        // exact: both are floats of similar magnitude
  float t = static_cast<float>(middle);
  if (t > middle) t = std::nextafter(t, low);
  if (t == middle && !tie_goes_low) t = std::nextafter(t, low);
  return t;
}

}  // namespace

Encoder16 make_encoder16(const Format& format) {
  Encoder16 encoder{};
  std::copy_n(format.codebook.begin(), 16, encoder.values);
  std::iota(encoder.codes, encoder.codes + 16, uint8_t{0});
  std::stable_sort(encoder.codes, encoder.codes + 16, [&](uint8_t a, uint8_t b) {
    // Of two zeros the higher code is the negative one (fp4 keeps the sign in bit 3).
    return encoder.values[a] != encoder.values[b] ? encoder.values[a] < encoder.values[b] : a > b;
  });
  for (int rank = 0; rank < 15; ++rank) {
    const float low = encoder.values[encoder.codes[rank]];
    const float high = encoder.values[encoder.codes[rank + 1]];
    const bool tie_goes_low = format.ties == Ties::Lower || std::fabs(low) < std::fabs(high);
    encoder.thresholds[rank] = threshold_between(low, high, tie_goes_low);
  }
  int rank = 0;
  while (rank < 15 && encoder.thresholds[rank] < 0.0F) ++rank;
  encoder.zero_code = encoder.codes[rank];
  return encoder;
}

}  // namespace qbits
