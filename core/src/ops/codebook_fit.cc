#include "ops/codebook_fit.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

namespace qbits {
namespace {

using Entries = std::array<double, 16>;

constexpr int kCandidates = 8192;
constexpr int kTried = 256;  // of those, whose nearest values err least
constexpr int kReach = 2;    // places by which two entries move at once
// Weights of a block: normal ones, by its absmax and their mean in standard deviations, and how much they count: those
// of blocks of 16 to 4096 (absmax 1.6 to 3.7) most, and heavier tails.
struct Weights {
  double absmax;
  double mean;
  double counts;
};
constexpr std::array<Weights, 15> kWeights = {{{1.6, 0, 0.5},
                                               {2, 0, 2},
                                               {2.5, 0, 2},
                                               {3, 0, 2},
                                               {3.7, 0, 2},
                                               {5, 0, 1},
                                               {7, 0, 1},
                                               {10, 0, 0.5},
                                               {15, 0, 0.3},
                                               {2.5, 0.1, 0.5},
                                               {2.5, -0.1, 0.5},
                                               {2, 0.1, 0.5},
                                               {2, -0.1, 0.5},
                                               {3.5, 0.1, 0.5},
                                               {3.5, -0.1, 0.5}}};
constexpr double kUniformCounts = 1;  // uniform ones, and all codes equally likely
// The square of the mean error counts as in a sum of 8192 products with activations of one sign, half normal.
constexpr double kSumLength = 8192 * 2 / 3.14159265;
constexpr double kScalesOfAModel = 20;
// The root mean square of what entries err, of what rounding them does once they are scaled: hardly more than nothing.
constexpr double kMostOfRounding = 0.145;

// What a number that is rounded to `bits` is a multiple of.
double step_of(double v, int bits) {
  constexpr uint64_t kExponent = 0x7ff0000000000000;
  return std::bit_cast<double>(std::bit_cast<uint64_t>(v) & kExponent) * std::ldexp(1.0, 1 - bits);
}

double round_to(double v, int bits) {
  const double round = step_of(v, bits) * 0x1.8p52;  // added, it rounds to steps
  return v + round - round;
}

// Probability of each entry being nearest to a weight over its block's absmax, which is below v with
// `probability_below`.
template <class F>
Entries probabilities(std::span<const float> codebook, const F& probability_below) {
  std::array<int, 16> order{};
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {}, [&](int i) { return codebook[i]; });
  Entries p{};
  double below = 0;
  for (int rank = 0; rank < 16; ++rank) {
    double up_to = 1;
    if (rank < 15) up_to = probability_below((double{codebook[order[rank]]} + codebook[order[rank + 1]]) / 2);
    p[order[rank]] = up_to - below;
    below = up_to;
  }
  return p;
}

// What becomes of an entry of which so many of the places are raised: the mean of the error and of its square.
struct Choice {
  double mean;
  double square;
};
using Choices = std::array<std::array<Choice, kFitPlaces + 1>, 16>;
using Chosen = std::array<int, 16>;

Entries squares_of(const Choices& choices, const Chosen& chosen) {
  Entries squares{};
  for (int i = 0; i < 16; ++i) squares[i] = choices[i][chosen[i]].square;
  return squares;
}

// The cost of the errors of all entries: of each kind of weights the mean square of the error and, kSumLength times,
// the square of its mean, relative to the mean square of the weights.
class Cost {
 public:
  explicit Cost(std::span<const float> codebook) {
    Entries equal{};
    equal.fill(1.0 / 16);
    add(codebook, equal, kUniformCounts);
    add(codebook, probabilities(codebook, [](double v) { return std::clamp((1 + v) / 2, 0.0, 1.0); }), kUniformCounts);
    for (const Weights& w : kWeights) {
      const auto below = [&](double v) { return (1 + std::erf((v * w.absmax - w.mean) / std::sqrt(2.0))) / 2; };
      add(codebook, probabilities(codebook, below), w.counts);
    }
  }

  double of_squares(const Entries& squares) const {
    return std::inner_product(squares.begin(), squares.end(), squares_.begin(), 0.0);
  }

  // What the mean errors cost where scales have as many bits as weights are rounded to. The same bits of a scale then
  // round products of a code up or down, whichever way the fit has moved them, in all blocks with that scale, of which
  // a model has some twenty. errors: of scales by turns, of each entry.
  double of_scales(const std::vector<Entries>& errors) const {
    double cost = 0;
    for (const Kind& kind : kinds_) {
      double sum = 0;
      double squares = 0;
      for (const Entries& error : errors) {
        const double mean = std::inner_product(error.begin(), error.end(), kind.probabilities.begin(), 0.0);
        sum += mean;
        squares += mean * mean;
      }
      const auto count = static_cast<double>(errors.size());
      cost += kind.counts * kSumLength * (sum * sum / (count * count) + squares / count / kScalesOfAModel);
    }
    return cost;
  }

  // Takes other choices, for one or two entries at a time, while that lowers the cost, which it returns.
  double descend(const Choices& choices, int count, Chosen& chosen) const {
    struct Move {
      int entry = -1;
      int to = 0;
    };
    Entries mean{};
    for (int i = 0; i < 16; ++i) mean[i] = choices[i][chosen[i]].mean;
    double cost = of_squares(squares_of(choices, chosen));
    for (int i = 0; i < 16; ++i) cost += mean[i] * slope(mean, i);
    while (true) {
      std::array<std::array<double, kFitPlaces + 1>, 16> shift{};   // of the mean, by each choice,
      std::array<std::array<double, kFitPlaces + 1>, 16> change{};  // and of the cost
      double best = -1e-9 * cost;
      std::array<Move, 2> moves{};
      for (int i = 0; i < 16; ++i) {
        const double along = slope(mean, i);
        for (int to = 0; to < count; ++to) {
          const double d = choices[i][to].mean - mean[i];
          shift[i][to] = d;
          change[i][to] =
              squares_[i] * (choices[i][to].square - choices[i][chosen[i]].square) + d * (2 * along + d * means_[i][i]);
          if (change[i][to] < best) {
            best = change[i][to];
            moves = {Move{i, to}, Move{}};
          }
        }
        for (int j = 0; j < i; ++j) {
          for (int to = std::max(chosen[i] - kReach, 0); to <= std::min(chosen[i] + kReach, count - 1); ++to) {
            const double both = 2 * shift[i][to] * means_[i][j];
            for (int other = std::max(chosen[j] - kReach, 0); other <= std::min(chosen[j] + kReach, count - 1);
                 ++other) {
              const double sum = change[i][to] + change[j][other] + both * shift[j][other];
              if (sum >= best) continue;
              best = sum;
              moves = {Move{i, to}, Move{j, other}};
            }
          }
        }
      }
      if (moves[0].entry < 0) return cost;
      for (const Move& m : moves) {
        if (m.entry < 0) continue;
        mean[m.entry] = choices[m.entry][m.to].mean;
        chosen[m.entry] = m.to;
      }
      cost += best;
    }
  }

 private:
  void add(std::span<const float> codebook, const Entries& p, double counts) {
    double power = 0;
    for (int i = 0; i < 16; ++i) power += p[i] * codebook[i] * codebook[i];
    if (power == 0) return;
    kinds_.push_back({p, counts / power});
    for (int i = 0; i < 16; ++i) {
      squares_[i] += counts / power * p[i];
      for (int j = 0; j < 16; ++j) means_[i][j] += counts / power * kSumLength * p[i] * p[j];
    }
  }

  // Half of the slope of the means' cost along an entry.
  double slope(const Entries& mean, int i) const {
    double sum = 0;
    for (int j = 0; j < 16; ++j) sum += means_[i][j] * mean[j];
    return sum;
  }

  struct Kind {
    Entries probabilities;
    double counts;  // by the mean square of its weights
  };

  std::vector<Kind> kinds_;
  Entries squares_{};
  std::array<Entries, 16> means_{};
};

// The squares of what entries err as the nearest values.
Entries nearest_squares(std::span<const float> codebook, const FitTarget& target, double c) {
  Entries squares{};
  for (int i = 0; i < 16; ++i) {
    if (codebook[i] == 0) continue;
    const double v = target.shift + codebook[i] * c;
    squares[i] = std::pow((round_to(v, target.bits) - v) / c, 2);
  }
  return squares;
}

// shift + codebook * c, between the two numbers next to each entry. Zero stays zero.
struct Candidate {
  Candidate(std::span<const float> codebook, const FitTarget& target, int places_, double c) : places(places_) {
    for (int i = 0; i < 16; ++i) {
      if (codebook[i] == 0) continue;
      const double v = target.shift + codebook[i] * c;
      const double step = std::copysign(step_of(v, target.bits), v);
      const double lower = std::trunc(v / step) * step;
      const double part = (v - lower) / step;
      below[i] = (lower - target.shift) / c;
      unit[i] = step / c;
      for (int k = 0; k <= places; ++k) {
        const double raised = static_cast<double>(k) / places;
        choices[i][k] = {(raised - part) * unit[i],
                         (raised * (1 - part) * (1 - part) + (1 - raised) * part * part) * unit[i] * unit[i]};
      }
      if (part > 0.5) nearest[i] = places;
    }
  }

  int places;
  Entries below{};  // of the two numbers the one nearer to 0, as a value of the codebook,
  Entries unit{};   // and how far the other is, away from 0
  Choices choices{};
  Chosen nearest{};
};

// What values of weights that are scaled and then rounded to `bits` cost besides their own errors.
class Rounding {
 public:
  Rounding(std::span<const float> codebook, int bits) : bits_(bits) {
    const double power = std::inner_product(codebook.begin(), codebook.end(), codebook.begin(), 0.0);
    // By scales whose logarithms are uniform: steps are 2^(1 - bits) of the power of two below.
    const double of_power = 0.75 / (2 * std::log(2.0)) / 12 * std::ldexp(1.0, 2 - 2 * bits);
    most_ = kMostOfRounding * kMostOfRounding * of_power * power;
    for (int s = 0; s < kScales; ++s) {
      for (int i = 0; i < 16; ++i) rounded_[s][i] = scaled(codebook[i], s);
    }
  }

  double of(const Candidate& candidate, const Chosen& chosen, const Cost& cost) const {
    constexpr double kTooMuch = 1;  // for any that errs less to be better
    const Entries squares = squares_of(candidate.choices, chosen);
    const double sum = std::accumulate(squares.begin(), squares.end(), 0.0);
    return (sum > most_ ? kTooMuch : 0) + cost.of_scales(errors(candidate, chosen));
  }

 private:
  static constexpr int kScales = 128;  // all of bfloat16, every eighth of float16

  double scaled(double v, int s) const {
    const int scale = (kScales + s) << (bits_ - 8);
    return round_to(v * scale, bits_) / scale;
  }

  // What weights err more than their codebook's where scales have `bits` bits, too.
  std::vector<Entries> errors(const Candidate& candidate, const Chosen& chosen) const {
    std::vector<Entries> errors(kScales);
    for (int i = 0; i < 16; ++i) {
      const double raised = static_cast<double>(chosen[i]) / candidate.places;
      for (int s = 0; s < kScales; ++s) {
        double mean = -rounded_[s][i];
        if (raised < 1) mean += (1 - raised) * scaled(candidate.below[i], s);
        if (raised > 0) mean += raised * scaled(candidate.below[i] + candidate.unit[i], s);
        errors[s][i] = mean;
      }
    }
    return errors;
  }

  int bits_;
  double most_;
  std::array<Entries, kScales> rounded_{};
};

}  // namespace

FittedCodebook fit_codebook(std::span<const float> entries, const FitTarget& target) {
  std::array<float, 16> codebook{};  // entries that are not finite stay what they are
  std::ranges::replace_copy_if(entries, codebook.begin(), [](float v) { return !std::isfinite(v); }, 0.0F);
  const Cost cost(codebook);
  std::optional<Rounding> rounding;
  if (target.rounded_bits != 0) rounding.emplace(codebook, target.rounded_bits);
  const int places = rounding ? kFitPlaces / 2 : kFitPlaces;
  std::vector<std::pair<double, double>> multipliers;  // with the least that each costs
  for (int i = 0; i < kCandidates; ++i) {
    const double c = 1 + static_cast<double>(i) / kCandidates;
    multipliers.emplace_back(cost.of_squares(nearest_squares(codebook, target, c)), c);
  }
  std::ranges::partial_sort(multipliers, multipliers.begin() + kTried);
  multipliers.resize(kTried);
  double best = std::numeric_limits<double>::infinity();
  FittedCodebook fitted{};
  for (const auto& [least, c] : multipliers) {
    if (least >= best) break;
    const Candidate candidate(codebook, target, places, c);
    Chosen chosen = candidate.nearest;
    double all = cost.descend(candidate.choices, places + 1, chosen);
    if (rounding && all < best) all += rounding->of(candidate, chosen, cost);
    if (all >= best) continue;
    best = all;
    fitted.factor = static_cast<float>(1 / c);
    fitted.exact = true;
    for (int i = 0; i < 16; ++i) {
      const double value = candidate.below[i] + (chosen[i] == places ? candidate.unit[i] : 0.0);
      fitted.values[i] = codebook[i] == 0 ? entries[i] : static_cast<float>(value * c);
      fitted.raised[i] = chosen[i] % places * (kFitPlaces / places);
      const double error = std::sqrt(candidate.choices[i][chosen[i]].square);
      fitted.exact &= error <= 0x1p-23 * std::abs(codebook[i]);
    }
  }
  return fitted;
}

}  // namespace qbits
