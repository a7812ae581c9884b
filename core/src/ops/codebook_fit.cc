#include "ops/codebook_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace qbits {
namespace {

using Entries = std::array<double, 16>;

constexpr int kCandidates = 8192;
// Absmax of a block in standard deviations: blocks of 16 to 4096 normal weights, and heavier tails.
constexpr std::array<double, 7> kAbsmax = {1.6, 2.0, 2.5, 3.0, 3.7, 5.0, 7.0};
// How many equal activations in a sum the mean error is weighed for.
constexpr double kSumLength = 4096;

double round_to(double v, int bits) {
  int exponent = 0;
  const double fraction = std::frexp(v, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(fraction, bits)), exponent - bits);
}

// Probability of each entry being nearest to a normal weight over its block's absmax.
Entries probabilities(std::span<const float> codebook, double absmax) {
  std::array<int, 16> order{};
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](int i) { return codebook[i]; });
  Entries p{};
  double below = 0;
  for (int rank = 0; rank < 16; ++rank) {
    double up_to = 1;
    if (rank < 15) {
      const double threshold = (double{codebook[order[rank]]} + codebook[order[rank + 1]]) / 2;
      up_to = (1 + std::erf(threshold * absmax / std::sqrt(2.0))) / 2;
    }
    p[order[rank]] = up_to - below;
    below = up_to;
  }
  return p;
}

// The multiplier c in [1, 2) for which round(codebook * c) / c errs least.
template <class Round>
FittedCodebook fit(std::span<const float> codebook, Round round) {
  std::array<Entries, kAbsmax.size()> p{};
  std::array<double, kAbsmax.size()> power{};
  for (size_t d = 0; d < kAbsmax.size(); ++d) {
    p[d] = probabilities(codebook, kAbsmax[d]);
    for (int i = 0; i < 16; ++i) power[d] += p[d][i] * codebook[i] * codebook[i];
  }
  double best = std::numeric_limits<double>::infinity();
  double best_c = 1;
  for (int candidate = 0; candidate < kCandidates; ++candidate) {
    const double c = 1 + static_cast<double>(candidate) / kCandidates;
    Entries error{};
    for (int i = 0; i < 16; ++i) error[i] = round(codebook[i] * c) / c - codebook[i];
    double cost = 0;
    for (size_t d = 0; d < kAbsmax.size(); ++d) {
      double mean = 0;
      double square = 0;
      for (int i = 0; i < 16; ++i) {
        mean += p[d][i] * error[i];
        square += p[d][i] * error[i] * error[i];
      }
      cost += (square + kSumLength * mean * mean) / power[d];
    }
    if (cost < best) {
      best = cost;
      best_c = c;
    }
  }
  FittedCodebook fitted{};
  for (int i = 0; i < 16; ++i) fitted.values[i] = static_cast<float>(round(codebook[i] * best_c));
  fitted.factor = static_cast<float>(1 / best_c);
  return fitted;
}

}  // namespace

FittedCodebook fit_codebook(std::span<const float> codebook, int significand_bits) {
  return fit(codebook, [=](double v) { return round_to(v, significand_bits); });
}

FittedCodebook fit_codebook_shifted(std::span<const float> codebook, float shift, int significand_bits) {
  return fit(codebook, [=](double v) { return round_to(shift + v, significand_bits) - shift; });
}

}  // namespace qbits
