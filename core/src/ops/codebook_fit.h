#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <mutex>
#include <span>
#include <vector>

#include "qbits/export.h"
#include "qbits/format.h"

namespace qbits {

// Of neighbouring weights, how many may differ in the values of their codes.
inline constexpr int kFitPlaces = 8;

// A 16-entry codebook rounded for a matrix unit: codebook[i] is close to values[i] * factor, where each value has few
// bits. It is dithered: raised[i] of kFitPlaces weights have the next such number away from 0 instead.
struct FittedCodebook {
  std::array<float, 16> values;
  std::array<int, 16> raised;
  float factor;
  bool exact;  // to float32's rounding
};

// What values are fitted for: products with activations, whose sums are scaled, or, if rounded_bits is not 0, weights
// that are scaled, and then rounded to so many bits of a significand.
struct FitTarget {
  int bits;              // of a value's significand,
  int rounded_bits = 0;  // of a weight's. `raised` is even then, for places along a row and a column
  float shift = 0;       // shift + value is what has `bits` bits
};

// Rounding c * codebook with a well-chosen c in [1, 2), some entries up and some down and a few dithered, errs less
// than rounding each dequantized weight, and 1 / c joins the scales, which stay in float32. Minimizes, over weights of
// several distributions, the mean square of the error plus the square of its mean, which alone grows with the length of
// a sum of products when activations do not average to zero.
QBITS_API FittedCodebook fit_codebook(std::span<const float> codebook, const FitTarget& target);

// fit_codebook of a format, which takes milliseconds: of those of the format table once, of others where another came
// last. Valid until the thread asks for another's.
template <FitTarget kTarget>
const FittedCodebook& fitted(const Format& format) {
  struct Kept {
    std::once_flag once;
    FittedCodebook fit;
  };
  static std::vector<Kept> table(formats().size());
  for (size_t i = 0; i < table.size(); ++i) {
    if (&formats()[i] != &format) continue;
    std::call_once(table[i].once, [&] { table[i].fit = fit_codebook(format.codebook, kTarget); });
    return table[i].fit;
  }
  thread_local std::vector<float> last;
  thread_local FittedCodebook fit{};
  if (!std::ranges::equal(last, format.codebook)) {
    last.assign(format.codebook.begin(), format.codebook.end());
    fit = fit_codebook(format.codebook, kTarget);
  }
  return fit;
}

}  // namespace qbits
