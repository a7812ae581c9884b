#pragma once

#include <array>
#include <span>

#include "qbits/export.h"

namespace qbits {

// A 16-entry codebook rounded for a matrix unit: codebook[i] is close to values[i] * factor, where each value
// fits a significand of `significand_bits` bits.
struct FittedCodebook {
  std::array<float, 16> values;
  float factor;
};

// Rounding c * codebook with a well-chosen c in [1, 2), some entries away from the nearest, errs less than rounding
// each dequantized weight, and 1 / c joins the scales, which stay in float32. Minimizes, over weights drawn from normal
// distributions of several widths and over codes that are equally likely, the mean square of the error plus the square
// of its mean, which alone grows with the length of a sum of products when activations do not average to zero.
QBITS_API FittedCodebook fit_codebook(std::span<const float> codebook, int significand_bits);

// The same where shift + value is what has `significand_bits` bits.
QBITS_API FittedCodebook fit_codebook_shifted(std::span<const float> codebook, float shift, int significand_bits);

}  // namespace qbits
