#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "qbits/export.h"
#include "qbits/format.h"

namespace qbits {

// Of neighbouring weights, how many may differ in the values of their codes.
inline constexpr int kFitPlaces = 8;

// A 16-entry codebook rounded for a matrix unit: codebook[i] is close to values[i] * factor, where each value
// fits a significand of `significand_bits` bits. It is dithered: raised[i] of kFitPlaces weights have the next such
// number away from 0 instead.
struct FittedCodebook {
  std::array<float, 16> values;
  std::array<int, 16> raised;
  float factor;
  bool exact;  // to float32's rounding
};

// What values are fitted for.
enum class CodebookFit : uint8_t {
  Sums,     // products of activations, whose sums are scaled: the places are those along a row
  Weights,  // scaled, and rounded to fewer bits; `raised` is even, for places along a row and a column
};

// Rounding c * codebook with a well-chosen c in [1, 2), some entries up and some down and a few dithered, errs less
// than rounding each dequantized weight, and 1 / c joins the scales, which stay in float32. Minimizes, over weights of
// several distributions, the mean square of the error plus the square of its mean, which alone grows with the length of
// a sum of products when activations do not average to zero. shift + value is what has `significand_bits` bits.
QBITS_API FittedCodebook fit_codebook(std::span<const float> codebook, int significand_bits, CodebookFit purpose,
                                      float shift = 0);

template <int kSignificandBits, CodebookFit kPurpose>
FittedCodebook fit_operand(std::span<const float> codebook) {
  return fit_codebook(codebook, kSignificandBits, kPurpose);
}

// kFit of a format's codebook, which takes milliseconds: of the format table's once, of others where another came last.
// Valid until the thread asks for another's.
template <FittedCodebook (*kFit)(std::span<const float>)>
const FittedCodebook& fitted(const Format& format) {
  static const std::vector<FittedCodebook> table = [] {
    std::vector<FittedCodebook> fits(formats().size());
    for (size_t i = 0; i < fits.size(); ++i) {
      if (formats()[i].codebook.size() == 16) fits[i] = kFit(formats()[i].codebook);
    }
    return fits;
  }();
  for (size_t i = 0; i < table.size(); ++i) {
    if (&formats()[i] == &format) return table[i];
  }
  thread_local std::vector<float> last;
  thread_local FittedCodebook fit{};
  if (!std::ranges::equal(last, format.codebook)) {
    last.assign(format.codebook.begin(), format.codebook.end());
    fit = kFit(format.codebook);
  }
  return fit;
}

}  // namespace qbits
