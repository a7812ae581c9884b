#include <algorithm>

#include "ops/ceil_div.h"
#include "ops/linear_4bit_plan.h"
#include "ops/resident_clusters.h"

namespace qbits {
namespace {

// Fitted to times of an H200, in clocks, directly after another product in a graph and after other kernels alike.
constexpr double kBytesPerClock = 16.0;   // that each SM draws from memory where all do
constexpr double kMostPerClock = 32.0;    // that one draws at most
constexpr double kWarpClocks = 320.0;     // issue slots of a warp in a round
constexpr double kLeastClocks = 1100.0;   // of a round, from a stage's arrival to its sums
constexpr double kRoundClocks = 20.0;     // what a round costs besides
constexpr double kClusterClocks = 600.0;  // and each block of a cluster, for which so many SMs must be free at once

constexpr int64_t kMaxSize = 1 << 30;  // of N and K, which the kernel counts in 32 bits

struct Candidate {
  Linear4bitPlan plan;
  double clocks = 0;
};

int shared_bytes(const Linear4bitPlan& plan, bool affine) {
  const int sums = Linear4bitStream::sum_bytes(plan.column_tiles);
  const int groups = plan.warps / plan.parts;
  const int64_t own_rounds = ceil_div(plan.rounds, plan.splits);
  const int64_t bytes = Linear4bitStream::table_bytes(affine) + Linear4bitStream::kBarrierBytes +
                        plan.stages * Linear4bitStream::stage_bytes(plan.parts, groups, plan.chunk, affine) +
                        plan.warps * (Linear4bitStream::x_sum_bytes(plan.column_tiles, plan.chunk, affine) + sums) +
                        (plan.splits > 1 ? plan.splits * own_rounds * groups * sums : 0);
  return static_cast<int>(std::min<int64_t>(bytes, 1 << 30));
}

// The plan with these choices, or nothing where the device cannot hold it.
std::optional<Candidate> candidate(const Linear4bitProblem& p, int column_tiles, int splits, int max_warps) {
  const bool affine = p.coding == Coding::Affine;
  const int64_t pieces = likely_pieces(p, 8 * column_tiles);
  const int64_t parts = ceil_div(ceil_div(p.k, Linear4bitStream::kSlotDepth), splits);
  if (parts > max_warps || ceil_div(p.k, parts * Linear4bitStream::kSlotDepth) != splits) return {};
  // A group more than the rows of the weight ask for would only idle.
  const int64_t groups =
      std::min(max_warps / parts, ceil_div(pieces * ceil_div(p.n, 16), resident_clusters(p.sm_count, splits)));
  const int64_t piece_tiles = ceil_div(p.n, 16 * groups);
  const int64_t tiles = pieces * piece_tiles;
  const int64_t max_tiles = max_pieces(p, 8 * column_tiles) * piece_tiles;
  if (max_tiles > kMaxSize) return {};

  Linear4bitPlan plan{.kernel = Linear4bitKernel::Stream,
                      .chunk = linear_4bit_chunk(p),
                      .splits = splits,
                      .split_depth = parts * Linear4bitStream::kSlotDepth,
                      .column_tiles = column_tiles,
                      .warps = static_cast<int>(groups * parts),
                      .parts = static_cast<int>(parts)};
  const SharedLimit limit = shared_limit(p.compute_capability);
  // Sums of a cluster wait in shared memory until the end: where they would not fit, blocks do fewer rounds.
  for (int64_t waves = 1; waves <= 64; waves *= 2) {
    const int64_t columns = std::min(tiles, resident_clusters(p.sm_count, splits) * waves);
    plan.rounds = static_cast<int>(ceil_div(max_tiles, columns));
    plan.blocks = columns * splits;
    for (plan.stages = Linear4bitStream::kMaxStages; plan.stages >= 2; --plan.stages) {
      plan.shared_bytes = shared_bytes(plan, affine);
      if (plan.shared_bytes > limit.block) continue;
      // Of memory: a scale and a zero of 16 bits are as much as a scale of a codebook format.
      const double bytes = Linear4bitStream::stage_bytes(plan.parts, static_cast<int>(groups), plan.chunk, false);
      const double issue = kWarpClocks * column_tiles * static_cast<double>(ceil_div(plan.warps, 4));
      const double transfer = bytes / std::clamp(kBytesPerClock * p.sm_count / static_cast<double>(plan.blocks),
                                                 kBytesPerClock, kMostPerClock);
      // The first stage comes before any work; the others pass meanwhile.
      const double clocks = static_cast<double>(waves) * transfer +
                            static_cast<double>(ceil_div(tiles, columns) * waves) *
                                (std::max({transfer, issue, kLeastClocks}) + kRoundClocks) +
                            (splits > 1 ? kClusterClocks * splits : 0.0);
      return Candidate{plan, clocks};
    }
    if (splits == 1) return {};
  }
  return {};
}

// Groups of 8 rows of x in a piece; where experts share the rows, room for twice the likely number.
int column_tiles(const Linear4bitProblem& p) {
  return (p.experts == 0 ? p.m : 2 * ceil_div(p.m, std::min(p.experts, p.m))) > 8 ? 2 : 1;
}

std::vector<Candidate> candidates(const Linear4bitProblem& p, int column_tiles) {
  std::vector<Candidate> found;
  if (p.compute_capability < 90 || std::max(p.n * std::max<int64_t>(p.experts, 1), p.k) > kMaxSize) return found;
  if (p.experts == 0 && p.m > Linear4bitStream::kMaxM) return found;
  for (const int splits : {1, 2, 4, 8}) {
    for (const int max_warps : {Linear4bitStream::kMaxWarps, Linear4bitStream::kMaxWarps / 2}) {
      const auto c = candidate(p, column_tiles, splits, max_warps);
      if (c && (found.empty() || !(found.back().plan == c->plan))) found.push_back(*c);
    }
  }
  return found;
}

}  // namespace

std::optional<Linear4bitPlan> linear_4bit_stream_plan(const Linear4bitProblem& p) {
  std::vector<Candidate> found = candidates(p, column_tiles(p));
  // Of experts, sums of 16 rows that a cluster keeps to the end leave little room for the weights that pass by.
  if (p.experts > 0 && column_tiles(p) == 2) {
    std::erase_if(found, [](const Candidate& c) { return c.plan.splits > 1; });
  }
  const auto best = std::ranges::min_element(found, {}, &Candidate::clocks);
  if (best == found.end()) return {};
  return best->plan;
}

std::vector<Linear4bitPlan> linear_4bit_stream_plans(const Linear4bitProblem& p) {
  std::vector<Linear4bitPlan> plans;
  for (const Candidate& c : candidates(p, column_tiles(p))) plans.push_back(c.plan);
  if (p.experts > 0) {
    for (const Candidate& c : candidates(p, 3 - column_tiles(p))) plans.push_back(c.plan);
  }
  return plans;
}

}  // namespace qbits
