#include "ops/codebook_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "float_bits.h"
#include "qbits/format.h"

namespace qbits {
namespace {

using test::rounded;

// Those that the kernels ask for.
constexpr FitTarget kSums{.bits = 8};
constexpr FitTarget kHalfSums{.bits = 11};
constexpr FitTarget kWeights{.bits = 11, .rounded_bits = 8};
constexpr FitTarget kFractions{.bits = 16, .rounded_bits = 11, .shift = 4.0F};

// The value of a code where it is raised, or not.
double value_of(const FittedCodebook& fit, int code, bool raised, const FitTarget& target) {
  const double v = fit.values[code];
  if (!raised) return v;
  int exponent = 0;
  std::frexp(v + target.shift, &exponent);
  return v + std::copysign(std::ldexp(1.0, exponent - target.bits), v + target.shift);
}

// What a code's weights err, over their scale, raised and not: the mean, and the mean square.
struct CodeError {
  double mean = 0;
  double square = 0;
};

CodeError error_of(std::span<const float> codebook, const FittedCodebook& fit, int code, const FitTarget& target) {
  const double part = static_cast<double>(fit.raised[code]) / kFitPlaces;
  CodeError of;
  for (const bool raised : {false, true}) {
    const double share = raised ? part : 1 - part;
    const double error = value_of(fit, code, raised, target) * fit.factor - codebook[code];
    of.mean += share * error;
    of.square += share * error * error;
  }
  return of;
}

TEST(FitCodebook, ValuesAreRoundedEntries) {
  for (const Format& f : formats()) {
    if (f.codebook.size() != 16) continue;
    for (const FitTarget& target : {kSums, kHalfSums, kWeights}) {
      const FittedCodebook fit = fit_codebook(f.codebook, target);
      const DType dtype = target.bits == 8 ? DType::BFloat16 : DType::Float16;
      EXPECT_GT(fit.factor, 0.5F);
      EXPECT_LE(fit.factor, 1.0F);
      for (int i = 0; i < 16; ++i) {
        EXPECT_EQ(std::signbit(fit.values[i]), std::signbit(f.codebook[i])) << f.name << i;
        EXPECT_GE(fit.raised[i], 0);
        EXPECT_LT(fit.raised[i], kFitPlaces);
        EXPECT_TRUE(target.rounded_bits == 0 || fit.raised[i] % 2 == 0) << f.name << i;
        for (const bool raised : {false, fit.raised[i] > 0}) {
          // Rounded to one of the two numbers of so many bits beside it.
          const auto value = static_cast<float>(value_of(fit, i, raised, target));
          const double most = 2.1 * std::abs(f.codebook[i]) / (1 << target.bits);
          EXPECT_NEAR(value * fit.factor, f.codebook[i], most) << f.name << i;
          EXPECT_EQ(rounded(value, dtype), value) << f.name << i;
        }
      }
    }
  }
}

// What blocks of weights err by the fit, and where they are rounded to bfloat16: the mean square, and the mean.
struct Errors {
  double fitting = 0;
  double fitting_mean = 0;
  double rounding = 0;
  double results = 0;  // rounded: of products of x without a mean, as the mean square of weights
};

template <class Draw>
Errors errors_of(const Format& f, const FittedCodebook& fit, int block, const Draw& draw) {
  constexpr DType kDtype = DType::BFloat16;
  constexpr int kWeights = 1 << 17;
  Errors sum;
  std::vector<double> weights(block);
  for (int first = 0; first < kWeights; first += block) {
    double absmax = 0;
    for (double& w : weights) {
      w = rounded(static_cast<float>(draw()), kDtype);
      absmax = std::max(absmax, std::abs(w));
    }
    for (const double w : weights) {
      int nearest = 0;
      for (int i = 1; i < 16; ++i) {
        if (std::abs(f.codebook[i] * absmax - w) < std::abs(f.codebook[nearest] * absmax - w)) nearest = i;
      }
      const double exact = f.codebook[nearest] * absmax;
      const CodeError error = error_of(f.codebook, fit, nearest, kSums);
      sum.fitting += error.square * absmax * absmax / kWeights;
      sum.fitting_mean += error.mean * absmax / kWeights;
      sum.rounding += std::pow(rounded(static_cast<float>(exact), kDtype) - exact, 2) / kWeights;
      sum.results += std::pow(rounded(static_cast<float>(w * 1.2345678), kDtype) / 1.2345678 - w, 2) / kWeights;
    }
  }
  return sum;
}

// Products of weights that were bfloat16, so that the greatest of each block is rounded without error. Results are
// rounded, too. `alike` bounds their error over that of rounded weights, `one_sign` the same where 16,384 activations
// have one sign, by which means add up.
TEST(FitCodebook, ErrsAsRoundedWeightsOfBFloat16AtMost) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform(-1, 1);
  std::student_t_distribution<double> heavy(4);
  struct Kind {
    const char* name;
    std::function<double()> draw;
    double alike;
    double one_sign;
  };
  const Kind kinds[] = {
      {"normal", [&] { return normal(random); }, 0.97, 0.98},
      {"a mean", [&] { return normal(random) + 0.03; }, 0.98, 1.02},
      {"a negative mean", [&] { return normal(random) - 0.03; }, 0.98, 1.02},
      {"uniform", [&] { return uniform(random); }, 1.02, 1.05},
      {"heavy tails", [&] { return heavy(random); }, 1.02, 1.05},
  };
  for (const Format& f : formats()) {
    if (f.codebook.size() != 16) continue;
    const FittedCodebook fit = fit_codebook(f.codebook, kSums);
    for (const Kind& kind : kinds) {
      for (const int block : {32, 64, 128, 256, 1024, 4096}) {
        if (kind.name == std::string_view("heavy tails") && block > 256)
          continue;  // hardly a weight is far from 0 then
        const Errors e = errors_of(f, fit, block, kind.draw);
        const auto ratio = [&](double length) {
          const double means = e.fitting_mean * e.fitting_mean * length * 2 / 3.14159265;
          return std::sqrt((e.fitting + means + e.results) / (e.rounding + e.results));
        };
        EXPECT_LE(ratio(0), kind.alike) << f.name << ", " << kind.name << ", block " << block;
        EXPECT_LE(ratio(16384), kind.one_sign) << f.name << ", " << kind.name << ", block " << block;
      }
    }
  }
}

TEST(FitCodebook, SaysWhichCodebooksBFloat16Holds) {
  EXPECT_TRUE(fit_codebook(format("fp4").codebook, kSums).exact);
  EXPECT_FALSE(fit_codebook(format("nf4").codebook, kSums).exact);
  std::array<float, 16> levels{};
  for (int i = 0; i < 16; ++i) levels[i] = static_cast<float>(i - 8) / 8;
  EXPECT_TRUE(fit_codebook(levels, kSums).exact);
  for (int i = 0; i < 16; ++i) levels[i] = static_cast<float>(2 * i - 15) / 15;
  EXPECT_TRUE(fit_codebook(levels, kSums).exact);
  levels[3] += 0x1p-12F;
  EXPECT_FALSE(fit_codebook(levels, kSums).exact);
}

TEST(FitCodebook, EntriesThatAreNotFiniteStay) {
  std::array<float, 16> levels{};
  std::ranges::copy(format("nf4").codebook, levels.begin());
  levels[2] = std::numeric_limits<float>::quiet_NaN();
  levels[9] = std::numeric_limits<float>::infinity();
  const FittedCodebook fit = fit_codebook(levels, kSums);
  EXPECT_TRUE(std::isnan(fit.values[2]));
  EXPECT_EQ(fit.values[9], levels[9]);
  for (const int i : {0, 1, 5, 15}) EXPECT_NEAR(fit.values[i] * fit.factor, levels[i], 0.01F);
  levels.fill(levels[2]);
  EXPECT_TRUE(std::isnan(fit_codebook(levels, kWeights).values[0]));
}

TEST(FitCodebook, IsKeptForEachFormat) {
  const Format& fp4 = format("fp4");
  for (const Format* f : {&fp4, &format("nf4")}) {
    EXPECT_EQ(fitted<kSums>(*f).values, fit_codebook(f->codebook, kSums).values);
    EXPECT_EQ(fitted<kSums>(*f).raised, fit_codebook(f->codebook, kSums).raised);
  }
  // Others', whose codebook may change in place, one of zeros too.
  std::array<float, 16> levels{};
  Format other = fp4;
  other.codebook = levels;
  for (const float step : {0.0F, 0.1F, 0.0F}) {
    for (int i = 0; i < 16; ++i) levels[i] = static_cast<float>(i) * step;
    const FittedCodebook want = fit_codebook(levels, kSums);
    const FittedCodebook& kept = fitted<kSums>(other);
    EXPECT_EQ(kept.values, want.values) << step;
    EXPECT_EQ(kept.factor, want.factor) << step;
    EXPECT_EQ(kept.exact, want.exact) << step;
  }
}

TEST(FitCodebook, ShiftedValuesAreFractionsThatErrFarLessThanBFloat16) {
  for (const Format& f : formats()) {
    if (f.codebook.size() != 16) continue;
    const FittedCodebook fit = fit_codebook(f.codebook, kFractions);
    for (int i = 0; i < 16; ++i) {
      EXPECT_EQ(std::fmod(fit.values[i], 1.0F / 16384), 0.0F) << f.name << i;
      EXPECT_NEAR(fit.values[i] * fit.factor, f.codebook[i], 1.0F / 8192) << f.name << i;
      EXPECT_TRUE(f.codebook[i] != 0.0F || fit.values[i] == 0.0F) << f.name << i;
    }
  }
}

// The root mean square of what codes err, raised and not, over that of rounding scaled weights to `dtype`.
double error_over_rounding(std::span<const float> codebook, const FitTarget& target, DType dtype) {
  constexpr int kScales = 1024;
  const FittedCodebook fit = fit_codebook(codebook, target);
  double fitting = 0;
  double rounding = 0;
  for (int i = 0; i < 16; ++i) {
    fitting += error_of(codebook, fit, i, target).square;
    for (int s = 0; s < kScales; ++s) {
      const double scale = std::exp2(static_cast<double>(s) / kScales);
      rounding += std::pow((rounded(codebook[i] * scale, dtype) - codebook[i] * scale) / scale, 2) / kScales;
    }
  }
  return std::sqrt(fitting / rounding);
}

// What joins the one rounding of a scaled weight: with 0.4 of it products err 1.04 times as much, 1.05 being the bound.
TEST(FitCodebook, CodesErrLessThanScaledWeightsAreRounded) {
  for (const Format& f : formats()) {
    if (f.codebook.size() != 16) continue;
    const double bfloat16 = error_over_rounding(f.codebook, kWeights, DType::BFloat16);
    const double float16 = error_over_rounding(f.codebook, kFractions, DType::Float16);
    EXPECT_LT(bfloat16, 0.15) << f.name;
    EXPECT_LT(float16, 0.15) << f.name;
    RecordProperty(std::string(f.name),
                   std::to_string(bfloat16) + " of bfloat16, " + std::to_string(float16) + " of float16");
  }
}

// Also where no fit errs so little: of values of as many bits as weights are rounded to.
TEST(FitCodebook, FitsWhateverTheCodebook) {
  constexpr FitTarget kCoarse{.bits = 8, .rounded_bits = 8};
  EXPECT_GT(error_over_rounding(format("nf4").codebook, kCoarse, DType::BFloat16), 0.15);
  std::mt19937_64 random(2);
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (int round = 0; round < 8; ++round) {
    std::array<float, 16> levels{};
    for (float& v : levels) v = uniform(random) * std::exp2(static_cast<float>(round) * uniform(random) * 4);
    for (const FitTarget& target : {kSums, kHalfSums, kWeights, kCoarse}) {
      const FittedCodebook fit = fit_codebook(levels, target);
      for (int i = 0; i < 16; ++i) {
        EXPECT_NEAR(fit.values[i] * fit.factor, levels[i], 2.1 * std::abs(levels[i]) / (1 << target.bits)) << i;
      }
    }
  }
}

}  // namespace
}  // namespace qbits
