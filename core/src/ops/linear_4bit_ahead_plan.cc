#include "ops/linear_4bit_ahead_plan.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "ops/ceil_div.h"
#include "ops/linear_4bit_plan.h"

namespace qbits {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxSize = int64_t{1} << 26;

// Depth steps of which the ring holds the units: enough that blocks do not wait for one another, as long as the ring
// leaves the L2 room for x.
constexpr int kSteps = 8;
constexpr int64_t kRingBytes = int64_t{24} << 20;

// Measured on an H200, in microseconds.
struct Tile {
  int columns;
  double stage;  // 64 of depth
};
constexpr Tile kTiles[] = {{256, 0.685}, {128, 0.41}};
constexpr double kLaunch = 6.0;   // from launch to the first product
constexpr double kFinish = 1.75;  // to write the sums
constexpr double kDecode = 1.92;  // to dequantize a stage of weights,
constexpr double kHinder = 0.1;   // by which that keeps from multiplying, divided by the tiles that share it

// More tiles of x in a group leave less to dequantize; fewer read x less often from memory.
constexpr int kGroup = 8;

std::string obstacle(const Linear4bitProblem& p, bool transposed) {
  if (p.compute_capability != 90) return "compute capability is not 9.0";
  if (std::string why = linear_4bit_mma_obstacle(p, 32); !why.empty()) return why;
  if (transposed && p.n % 8 != 0) return "N is no multiple of 8";
  if (p.sm_count < Ahead::kBlocks) return "fewer than two multiprocessors";
  // Everything is counted in 32 bits: elements of the rows of a piece, units of all groups and waves.
  const int64_t sizes[] = {p.m, p.n, p.k};
  if (std::ranges::max(sizes) > kMaxSize) return "sizes past 2^26";
  const double tiles = static_cast<double>(ceil_div(transposed ? p.k : p.n, Ahead::kUnitOutputs)) *
                       static_cast<double>(ceil_div(p.m, 128));
  const double steps = static_cast<double>(ceil_div(transposed ? p.n : p.k, Ahead::kUnitDepth));
  if ((2 * tiles + static_cast<double>(p.sm_count)) * steps >= static_cast<double>(kMaxInt32)) {
    return "2^31 units or more";
  }
  return "";
}

AheadPlan plan_of(const Linear4bitProblem& p, bool transposed, const Tile& tile, int group) {
  AheadPlan plan{.columns = tile.columns, .group = group};
  const int64_t depth = transposed ? p.n : p.k;
  const int rows = static_cast<int>(ceil_div(transposed ? p.k : p.n, Ahead::kUnitOutputs));
  const int steps = static_cast<int>(ceil_div(depth, Ahead::kUnitDepth));
  const int x_tiles = static_cast<int>(ceil_div(p.m, tile.columns));
  const int clusters = static_cast<int>(std::min<int64_t>(p.sm_count / Ahead::kBlocks, int64_t{rows} * x_tiles));
  const AheadSchedule schedule(clusters, rows, steps, x_tiles, group);
  const int64_t step_bytes = int64_t{schedule.max_lines()} * Ahead::kUnitBytes;
  plan.units =
      schedule.max_lines() * static_cast<int>(std::clamp<int64_t>(kRingBytes / step_bytes, Ahead::kLeastSteps, kSteps));
  plan.blocks = int64_t{clusters} * Ahead::kBlocks;
  plan.workspace_bytes = Ahead::kAlignment + int64_t{plan.units} * Ahead::kUnitBytes +
                         clusters * Ahead::kProgressBytes + plan.units * Ahead::kReadyBytes;
  const double stage = std::max(tile.stage + kHinder / schedule.height, kDecode / schedule.height);
  plan.time = kLaunch + static_cast<double>(ceil_div(schedule.tiles, clusters)) *
                            (kFinish + stage * static_cast<double>(ceil_div(depth, Ahead::kStageDepth)));
  return plan;
}

}  // namespace

AheadPlan linear_4bit_ahead_plan(const Linear4bitProblem& p, bool transposed) {
  if (std::string why = obstacle(p, transposed); !why.empty()) return {.obstacle = why};
  AheadPlan best;
  for (const Tile& tile : kTiles) {
    AheadPlan plan = plan_of(p, transposed, tile, kGroup);
    if (best.blocks == 0 || plan.time < best.time) best = std::move(plan);
  }
  return best;
}

std::vector<AheadPlan> linear_4bit_ahead_plans(const Linear4bitProblem& p, bool transposed) {
  std::vector<AheadPlan> plans;
  if (!obstacle(p, transposed).empty()) return plans;
  for (const Tile& tile : kTiles) {
    for (const int group : {kGroup, 1}) plans.push_back(plan_of(p, transposed, tile, group));
  }
  return plans;
}

}  // namespace qbits
