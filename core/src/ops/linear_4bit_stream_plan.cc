#include "ops/linear_4bit_stream_plan.h"

#include <algorithm>
#include <iterator>

#include "ops/ceil_div.h"
#include "ops/resident_clusters.h"

namespace qbits {
namespace {

// Fitted to times of an H200, in clocks, directly after another product in a graph.
constexpr double kBytesPerClock = 16.0;  // that each SM draws from memory where all do
constexpr double kMostPerClock = 32.0;   // that one draws at most
constexpr double kRoundClocks = 40.0;    // what a round costs besides
constexpr double kClocksPerMicrosecond = 1750.0;
constexpr double kLaunch = 1.7;  // microseconds

struct Costs {
  double cluster;            // for a cluster, since several SMs must be free at once,
  double split;              // and for each of its blocks
  double x_bytes_per_clock;  // of a phase's x
  double draw;               // of the bandwidth, where fewer blocks than SMs are resident
  double slot;               // of a warp
  double affine_slot;
  double lone = 1.0;   // of these, where a scheduler has one such warp
  double phase = 0.0;  // what each phase but the first costs, besides its x
  double affine_phase = 0.0;
};
// Of x, up to which phases may take less than clusters: more, which come while codes are looked up, delay that.
constexpr int64_t kMaxPhaseRows = 4;
// Products on Hopper: long rows of one column tile, up to kMaxPhaseRows of x and more, and two column tiles. All
// others: fitted before there were phases.
constexpr Costs kPhaseRows{.cluster = 1200,
                           .split = 0,
                           .x_bytes_per_clock = 70,
                           .draw = 0.94,
                           .slot = 280,
                           .affine_slot = 420,
                           .phase = 500,
                           .affine_phase = 1200};
constexpr Costs kOneTileOfLongRows{
    .cluster = 2560, .split = 0, .x_bytes_per_clock = 58, .draw = 1, .slot = 240, .affine_slot = 240};
constexpr Costs kTwoTilesOnHopper{
    .cluster = 800, .split = 0, .x_bytes_per_clock = 30, .draw = 0.94, .slot = 520, .affine_slot = 560, .lone = 1.4};
constexpr Costs kOneTile{
    .cluster = 0, .split = 750, .x_bytes_per_clock = 40, .draw = 1, .slot = 360, .affine_slot = 540};
constexpr Costs kTwoTiles{
    .cluster = 0, .split = 750, .x_bytes_per_clock = 25, .draw = 1, .slot = 560, .affine_slot = 760};

constexpr int64_t kMaxSize = 1 << 30;  // of N and K, which the kernel counts in 32 bits

int shared_bytes(const Linear4bitPlan& plan, const Linear4bitProblem& p) {
  const bool affine = p.coding == Coding::Affine;
  const int sums = Linear4bitStream::sum_bytes(plan.column_tiles);
  const int groups = plan.warps / plan.parts;
  const int64_t own_rounds = ceil_div(plan.rounds, plan.splits);
  const int slots = stream_slots(plan);
  const int x_sums = stream_warp_slots(plan) * Linear4bitStream::x_sum_bytes(plan.column_tiles, plan.chunk, affine);
  const int64_t bytes = Linear4bitStream::table_bytes(affine) + Linear4bitStream::kBarrierBytes +
                        (p.nested ? Linear4bitShared::kNestedCodeBytes : 0) +
                        plan.stages * Linear4bitStream::stage_bytes(slots, groups, plan.chunk, affine) +
                        (affine ? plan.warps * (x_sums + sums) : 0) +
                        (plan.splits > 1 || plan.phases > 1 ? plan.splits * own_rounds * groups * sums : 0);
  return static_cast<int>(std::min<int64_t>(bytes, 1 << 30));
}

// As few phases as there can be.
int64_t min_phases(const Linear4bitProblem& p) {
  using Stream = Linear4bitStream;
  return ceil_div(p.k, int64_t{Stream::kMaxWarps} * Stream::kPhaseSlots * Stream::kSlotDepth);
}

const Costs& costs_of(const Linear4bitProblem& p, int column_tiles) {
  const bool on_hopper = p.compute_capability == 90 && p.experts == 0;
  if (column_tiles == 2) return on_hopper ? kTwoTilesOnHopper : kTwoTiles;
  if (!on_hopper || min_phases(p) == 1) return kOneTile;
  return p.m <= kMaxPhaseRows ? kPhaseRows : kOneTileOfLongRows;
}

// The plan with these choices, or nothing where the device cannot hold it.
std::optional<Linear4bitPlan> candidate(const Linear4bitProblem& p, int column_tiles, int splits, int phases,
                                        int warp_slots, int max_warps) {
  const bool affine = p.coding == Coding::Affine;
  const int64_t pieces = likely_pieces(p, 8 * column_tiles);
  const int64_t slots = ceil_div(ceil_div(p.k, Linear4bitStream::kSlotDepth), splits * phases);
  const int64_t parts = ceil_div(slots, warp_slots);
  if (parts > max_warps || ceil_div(p.k, slots * Linear4bitStream::kSlotDepth) != splits * phases) return {};
  if (ceil_div(slots, parts) != warp_slots) return {};
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
                      .phases = phases,
                      .split_depth = slots * Linear4bitStream::kSlotDepth,
                      .column_tiles = column_tiles,
                      .warps = static_cast<int>(groups * parts),
                      .parts = static_cast<int>(parts)};
  const SharedLimit limit = shared_limit(p.compute_capability);
  const Costs& costs = costs_of(p, column_tiles);
  // Sums of a cluster, and of earlier phases, wait in shared memory: where they would not fit, blocks do fewer rounds.
  for (int64_t waves = 1; waves <= 64; waves *= 2) {
    const int64_t columns = std::min(tiles, resident_clusters(p.sm_count, splits) * waves);
    plan.rounds = static_cast<int>(ceil_div(max_tiles, columns));
    plan.blocks = columns * splits;
    for (plan.stages = Linear4bitStream::kMaxStages; plan.stages >= 2; --plan.stages) {
      plan.shared_bytes = shared_bytes(plan, p);
      if (plan.shared_bytes > limit.block) continue;
      // Of a stage: codes, and float32 scales, or 16-bit ones with zeros, of 64 elements.
      const double bytes = static_cast<double>(groups * 16 * slots) * (Linear4bitStream::kSlotDepth / 2 + 16);
      const double resident = static_cast<double>(plan.blocks) / static_cast<double>(waves);
      const double drawn = costs.draw * kBytesPerClock * p.sm_count / resident;
      const double transfer = bytes / std::clamp(drawn, kBytesPerClock, kMostPerClock);
      const int warps = ceil_div(plan.warps, 4);  // of a scheduler
      const double issue = (affine ? costs.affine_slot : costs.slot) * warp_slots *
                           (warps == 1 ? costs.lone : static_cast<double>(warps));
      const int64_t x_rows = std::min<int64_t>(p.m, 8 * column_tiles);
      const double x_bytes = static_cast<double>(x_rows * groups * plan.split_depth * 2);  // each group loads its own
      const double tile_rounds = static_cast<double>(ceil_div(tiles, columns));
      const double x_clocks = x_bytes / costs.x_bytes_per_clock;
      const double phase = x_clocks + (affine ? costs.affine_phase : costs.phase);
      const double clocks = x_clocks + phase * (phases - 1) +
                            tile_rounds * phases * (std::max(transfer, issue) + kRoundClocks) +
                            (splits > 1 ? costs.cluster + costs.split * splits : 0.0);
      plan.time = kLaunch + static_cast<double>(waves) * clocks / kClocksPerMicrosecond;
      return plan;
    }
    if (splits == 1 && phases == 1) return {};
  }
  return {};
}

// Groups of 8 rows of x in a piece; where experts share the rows, room for twice the likely number.
int column_tiles(const Linear4bitProblem& p) {
  return (p.experts == 0 ? p.m : 2 * ceil_div(p.m, std::min(p.experts, p.m))) > 8 ? 2 : 1;
}

std::vector<Linear4bitPlan> candidates(const Linear4bitProblem& p, int column_tiles) {
  std::vector<Linear4bitPlan> found;
  if (p.compute_capability < 90 || std::max(p.n * std::max<int64_t>(p.experts, 1), p.k) > kMaxSize) return found;
  if (p.experts == 0 && p.m > Linear4bitStream::kMaxM) return found;
  const auto add = [&](int splits, int phases, int warp_slots) {
    // What a launch gives is too few registers for these; only Hopper shares them out. Experts have no other plan.
    const bool shares = Linear4bitStream::shares_registers(column_tiles, warp_slots, phases > 1);
    if (shares && p.compute_capability != 90 && p.experts == 0) return;
    for (const int max_warps : {Linear4bitStream::kMaxWarps, Linear4bitStream::kMaxWarps / 2}) {
      const auto c = candidate(p, column_tiles, splits, phases, warp_slots, max_warps);
      if (c && (found.empty() || !(found.back() == *c))) found.push_back(*c);
    }
  };
  for (const int splits : {1, 2, 4, 8}) {
    for (const int warp_slots : {1, 2}) add(splits, 1, warp_slots);
  }
  const int64_t phases = min_phases(p);
  if (p.experts == 0 && column_tiles == 1 && phases > 1 && phases <= Linear4bitStream::kMaxPhases) {
    add(1, static_cast<int>(phases), Linear4bitStream::kPhaseSlots);
  }
  return found;
}

}  // namespace

std::optional<Linear4bitPlan> linear_4bit_stream_plan(const Linear4bitProblem& p) {
  std::vector<Linear4bitPlan> found = candidates(p, column_tiles(p));
  // Of experts, sums of 16 rows that a cluster keeps to the end leave little room for the weights that pass by.
  if (p.experts > 0 && column_tiles(p) == 2) {
    std::erase_if(found, [](const Linear4bitPlan& plan) { return plan.splits > 1; });
  }
  const auto is_phased = [](const Linear4bitPlan& plan) { return plan.phases > 1; };
  if (p.m > kMaxPhaseRows && !std::ranges::all_of(found, is_phased)) std::erase_if(found, is_phased);
  if (found.empty()) return {};
  return *std::ranges::min_element(found, {}, &Linear4bitPlan::time);
}

std::vector<Linear4bitPlan> linear_4bit_stream_plans(const Linear4bitProblem& p) {
  std::vector<Linear4bitPlan> plans = candidates(p, column_tiles(p));
  if (p.experts > 0) std::ranges::move(candidates(p, 3 - column_tiles(p)), std::back_inserter(plans));
  return plans;
}

}  // namespace qbits
