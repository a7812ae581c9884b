#include "ops/codebook_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "float_bits.h"
#include "qbits/format.h"

namespace qbits {
namespace {

using test::rounded;

TEST(CodebookFit, ValuesAreRoundedEntries) {
  for (const Format& f : formats()) {
    if (f.codebook.size() != 16) continue;
    for (const auto& [bits, dtype] : {std::pair(8, DType::BFloat16), std::pair(11, DType::Float16)}) {
      const FittedCodebook fit = fit_codebook(f.codebook, bits);
      EXPECT_GT(fit.factor, 0.5F);
      EXPECT_LE(fit.factor, 1.0F);
      for (int i = 0; i < 16; ++i) {
        const float fitted = fit.values[i] * fit.factor;
        // Rounded to the next but one at most, to a number of so many bits.
        EXPECT_NEAR(fitted, f.codebook[i], 3 * std::abs(f.codebook[i]) / static_cast<float>(1 << bits)) << f.name << i;
        EXPECT_EQ(rounded(fit.values[i], dtype), fit.values[i]) << f.name << i;
        EXPECT_EQ(std::signbit(fit.values[i]), std::signbit(f.codebook[i])) << f.name << i;
      }
    }
  }
}

// Products of weights that were bfloat16, so that the greatest of each block is rounded without error: with results
// rounded, too, they err at most 1.05 times as those of rounded weights.
TEST(CodebookFit, ErrsAsRoundedWeightsOfBFloat16) {
  constexpr DType kDtype = DType::BFloat16;
  constexpr int kWeights = 1 << 17;
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  for (const Format& f : formats()) {
    if (f.codebook.size() != 16) continue;
    const FittedCodebook fit = fit_codebook(f.codebook, 8);
    for (const int block : {32, 64, 128, 256, 1024, 4096}) {
      double fitting = 0;
      double rounding = 0;
      double results = 0;
      std::vector<double> weights(block);
      for (int first = 0; first < kWeights; first += block) {
        double absmax = 0;
        for (double& w : weights) {
          w = rounded(normal(random), kDtype);
          absmax = std::max(absmax, std::abs(w));
        }
        for (const double w : weights) {
          int nearest = 0;
          for (int i = 1; i < 16; ++i) {
            if (std::abs(f.codebook[i] * absmax - w) < std::abs(f.codebook[nearest] * absmax - w)) nearest = i;
          }
          const double exact = f.codebook[nearest] * absmax;
          fitting += std::pow(double{fit.values[nearest]} * fit.factor * absmax - exact, 2);
          rounding += std::pow(rounded(exact, kDtype) - exact, 2);
          results += std::pow(rounded(w * 1.2345678, kDtype) / 1.2345678 - w, 2);
        }
      }
      EXPECT_LE(fitting + results, 1.05 * 1.05 * (rounding + results)) << f.name << ", block " << block;
    }
  }
}

TEST(CodebookFit, SaysWhichCodebooksBFloat16Holds) {
  EXPECT_TRUE(fit_codebook(format("fp4").codebook, 8).exact);
  EXPECT_FALSE(fit_codebook(format("nf4").codebook, 8).exact);
  std::array<float, 16> levels{};
  for (int i = 0; i < 16; ++i) levels[i] = static_cast<float>(i - 8) / 8;
  EXPECT_TRUE(fit_codebook(levels, 8).exact);
  for (int i = 0; i < 16; ++i) levels[i] = static_cast<float>(2 * i - 15) / 15;
  EXPECT_TRUE(fit_codebook(levels, 8).exact);
  levels[3] += 0x1p-12F;
  EXPECT_FALSE(fit_codebook(levels, 8).exact);
}

TEST(CodebookFit, IsKeptForEachFormat) {
  const Format& fp4 = format("fp4");
  EXPECT_EQ(fitted<fit_operand<8>>(fp4).values, fit_codebook(fp4.codebook, 8).values);
  // Others', whose codebook may change in place, one of zeros too.
  std::array<float, 16> levels{};
  Format other = fp4;
  other.codebook = levels;
  for (const float step : {0.0F, 0.1F, 0.0F}) {
    for (int i = 0; i < 16; ++i) levels[i] = static_cast<float>(i) * step;
    const FittedCodebook want = fit_codebook(levels, 8);
    const FittedCodebook& kept = fitted<fit_operand<8>>(other);
    EXPECT_EQ(kept.values, want.values) << step;
    EXPECT_EQ(kept.factor, want.factor) << step;
    EXPECT_EQ(kept.exact, want.exact) << step;
  }
}

TEST(CodebookFit, ShiftedValuesAreFractionsThatErrFarLessThanBFloat16) {
  for (const Format& f : formats()) {
    if (f.codebook.size() != 16) continue;
    const FittedCodebook fit = fit_codebook_shifted(f.codebook, 4.0F, 16);
    for (int i = 0; i < 16; ++i) {
      EXPECT_EQ(std::fmod(fit.values[i], 1.0F / 16384), 0.0F) << f.name << i;
      EXPECT_NEAR(fit.values[i] * fit.factor, f.codebook[i], 1.0F / 8192) << f.name << i;
      EXPECT_TRUE(f.codebook[i] != 0.0F || fit.values[i] == 0.0F) << f.name << i;
    }
  }
}

// The root mean square of what codes err, over that of rounding scaled weights to `dtype`.
double ErrorOverRounding(std::span<const float> codebook, const FittedCodebook& fit, DType dtype) {
  constexpr int kScales = 1024;
  double fitting = 0;
  double rounding = 0;
  for (int i = 0; i < 16; ++i) {
    fitting += std::pow(double{fit.values[i]} * fit.factor - codebook[i], 2);
    for (int s = 0; s < kScales; ++s) {
      const double scale = std::exp2(static_cast<double>(s) / kScales);
      rounding += std::pow((rounded(codebook[i] * scale, dtype) - codebook[i] * scale) / scale, 2) / kScales;
    }
  }
  return std::sqrt(fitting / rounding);
}

// What joins the one rounding of a scaled weight: with 0.4 of it products err 1.04 times as much, 1.05 being the bound.
TEST(CodebookFit, CodesErrLessThanScaledWeightsAreRounded) {
  for (const Format& f : formats()) {
    if (f.codebook.size() != 16) continue;
    const double bfloat16 = ErrorOverRounding(f.codebook, fit_codebook(f.codebook, 11), DType::BFloat16);
    const double float16 = ErrorOverRounding(f.codebook, fit_codebook_shifted(f.codebook, 4.0F, 16), DType::Float16);
    EXPECT_LT(bfloat16, 0.15) << f.name;
    EXPECT_LT(float16, 0.4) << f.name;
    RecordProperty(std::string(f.name),
                   std::to_string(bfloat16) + " of bfloat16, " + std::to_string(float16) + " of float16");
  }
}

}  // namespace
}  // namespace qbits
