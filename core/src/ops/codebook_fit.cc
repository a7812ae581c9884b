#include "ops/codebook_fit.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace qbits {
namespace {

using Entries = std::array<double, 16>;

constexpr int kCandidates = 4096;
// Weights of a block, by its absmax in their standard deviations, and how much they count: normal ones of blocks of 16
// to 4096 (about 1.7 to 3.7), those of 32 and 64 most, and heavier tails.
struct Weights {
  double absmax;
  double counts;
};
constexpr std::array<Weights, 7> kWeights = {{{1.6, 0.2}, {2, 2}, {2.5, 2}, {3, 1}, {3.7, 1}, {5, 1}, {7, 0.1}}};
constexpr double kUniformCounts = 0.5;  // all codes equally likely
// The square of the mean error counts as in a sum of 4096 products with activations of one sign, half normal.
constexpr double kSumLength = 4096 * 2 / 3.14159265;

// What a number that is rounded to `bits` is a multiple of.
double step_of(double v, int bits) {
  int exponent = 0;
  std::frexp(v, &exponent);
  return std::ldexp(1.0, exponent - bits);
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

// The cost of the errors of all entries, a quadratic form: of each kind of weights the mean square of the error and,
// kSumLength times, the square of its mean, relative to the mean square of the weights.
class Cost {
 public:
  explicit Cost(std::span<const float> codebook) {
    Entries uniform{};
    uniform.fill(1.0 / 16);
    add(codebook, uniform, kUniformCounts);
    for (const Weights& w : kWeights) add(codebook, probabilities(codebook, w.absmax), w.counts);
  }

  double of(const Entries& error) const {
    double cost = 0;
    for (int i = 0; i < 16; ++i) cost += error[i] * slope(error, i);
    return cost;
  }

  // Moves errors by at most one step of theirs, one or two at a time, while that lowers the cost.
  void descend(Entries& error, const Entries& step) const {
    struct Move {
      int entry = -1;
      int sign = 0;
    };
    std::array<int, 16> moved{};
    double last = of(error);
    while (true) {
      std::array<Entries, 2> single{};  // the change of the cost by one step down, and up
      for (int i = 0; i < 16; ++i) {
        const double along = slope(error, i);
        for (const int sign : {-1, 1}) {
          single[sign > 0][i] = 2 * sign * step[i] * along + step[i] * step[i] * form_[i][i];
        }
      }
      const auto may = [&](Move m) { return step[m.entry] > 0 && std::abs(moved[m.entry] + m.sign) <= 1; };
      double best = -1e-6 * last;
      std::array<Move, 2> moves{};
      for (int i = 0; i < 16; ++i) {
        for (const int sign : {-1, 1}) {
          const Move first{i, sign};
          if (!may(first)) continue;
          if (single[sign > 0][i] < best) {
            best = single[sign > 0][i];
            moves = {first, Move{}};
          }
          for (int j = 0; j < i; ++j) {
            for (const int other : {-1, 1}) {
              const Move second{j, other};
              const double change =
                  single[sign > 0][i] + single[other > 0][j] + 2 * sign * other * step[i] * step[j] * form_[i][j];
              if (change >= best || !may(second)) continue;
              best = change;
              moves = {first, second};
            }
          }
        }
      }
      if (moves[0].entry < 0) return;
      for (const Move& m : moves) {
        if (m.entry < 0) continue;
        error[m.entry] += m.sign * step[m.entry];
        moved[m.entry] += m.sign;
      }
      last += best;
    }
  }

 private:
  void add(std::span<const float> codebook, const Entries& p, double counts) {
    double power = 0;
    for (int i = 0; i < 16; ++i) power += p[i] * codebook[i] * codebook[i];
    if (power == 0) return;
    for (int i = 0; i < 16; ++i) {
      form_[i][i] += counts / power * p[i];
      for (int j = 0; j < 16; ++j) form_[i][j] += counts / power * kSumLength * p[i] * p[j];
    }
  }

  // Half of the slope of the cost along an entry.
  double slope(const Entries& error, int i) const {
    double sum = 0;
    for (int j = 0; j < 16; ++j) sum += form_[i][j] * error[j];
    return sum;
  }

  std::array<Entries, 16> form_{};
};

}  // namespace

FittedCodebook fit_codebook(std::span<const float> codebook, int significand_bits) {
  return fit_codebook_shifted(codebook, 0, significand_bits);
}

// The multiplier c in [1, 2), and shift + codebook * c rounded up or down, that err least; 0 stays 0.
FittedCodebook fit_codebook_shifted(std::span<const float> codebook, float shift, int significand_bits) {
  const Cost cost(codebook);
  double least = std::numeric_limits<double>::infinity();
  FittedCodebook fitted{};
  for (int candidate = 0; candidate < kCandidates; ++candidate) {
    const double c = 1 + static_cast<double>(candidate) / kCandidates;
    Entries error{};
    Entries steps{};
    for (int i = 0; i < 16; ++i) {
      if (codebook[i] == 0) continue;
      const double v = shift + codebook[i] * c;
      const double unit = step_of(v, significand_bits);
      const double nearest = std::nearbyint(v / unit) * unit;
      error[i] = (nearest - v) / c;
      steps[i] = step_of(nearest, significand_bits) / c;
    }
    cost.descend(error, steps);
    const double all = cost.of(error);
    if (all >= least) continue;
    least = all;
    for (int i = 0; i < 16; ++i) {
      fitted.values[i] = codebook[i] == 0 ? codebook[i] : static_cast<float>((codebook[i] + error[i]) * c);
    }
    fitted.factor = static_cast<float>(1 / c);
    fitted.exact = true;
    for (int i = 0; i < 16; ++i) fitted.exact &= std::abs(error[i]) <= 0x1p-23 * std::abs(codebook[i]);
  }
  return fitted;
}

}  // namespace qbits
