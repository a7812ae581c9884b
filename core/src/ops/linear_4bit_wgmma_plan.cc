#include "ops/linear_4bit_wgmma_plan.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "ops/ceil_div.h"
#include "ops/linear_4bit_plan.h"

namespace qbits {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

// A tile and what a block of it takes, measured on an H200 (microseconds).
struct Tile {
  int columns;
  int groups;
  WgmmaDecode decode;
  double stage;   // 128 of depth
  double finish;  // to write the sums
};

constexpr double kLaunch = 3.0;         // from launch to the first product
constexpr double kCluster = 1.5;        // for the blocks of a cluster to add their sums
constexpr double kSharing = 1.0;        // for the sums of shared tiles, and for each share of one,
constexpr double kShare = 1.2;          // to hear of it,
constexpr double kShareBytes = 80'000;  // and a microsecond to leave and take so much
constexpr double kApart = 1.15;         // by which wide tiles are slower where blocks are apart in depth and share no x

// Where scales are in the weights, fractions of 16 bits are the cheaper decoder where they do.
WgmmaDecode weights_decode(const Linear4bitProblem& p) {
  return p.coding == Coding::Affine || p.dtype == DType::BFloat16 ? WgmmaDecode::Weights16 : WgmmaDecode::Weights32;
}

std::string obstacle(const Linear4bitProblem& p, bool transposed) {
  if (p.compute_capability != 90) return "compute capability is not 9.0";
  if (std::string why = linear_4bit_mma_obstacle(p, 32); !why.empty()) return why;
  if (transposed && p.n % 8 != 0) return "N is no multiple of 8";
  const int64_t rows = p.n * std::max<int64_t>(p.experts, 1);
  if (p.m > kMaxInt32 || rows > kMaxInt32 || p.k > kMaxInt32) return "sizes past 2^31";
  if (rows * (p.k / 32) > 2 * kMaxInt32) return "2^32 runs of scales or more";
  return "";
}

struct Timed {
  WgmmaPlan plan;
  double time;
};

// Every plan of a problem without obstacle.
std::vector<Timed> timed_plans(const Linear4bitProblem& p, bool transposed) {
  const WgmmaDecode weights = weights_decode(p);
  const bool sums = !transposed && p.coding == Coding::Codebook && p.block_size % 64 == 0 && p.k % 64 == 0;
  const double slower = weights == WgmmaDecode::Weights32 ? 1.1 : 1.0;
  const Tile tiles[] = {{256, 2, weights, 1.50 * slower, 1.5}, {128, 2, weights, 1.06 * slower, 1.0},
                        {64, 2, weights, 0.80 * slower, 0.7},  {128, 2, WgmmaDecode::Sums, 0.98, 1.0},
                        {64, 2, WgmmaDecode::Sums, 0.61, 0.7}, {32, 3, WgmmaDecode::Sums, 0.70, 0.5},
                        {32, 2, WgmmaDecode::Sums, 0.50, 0.5}};
  const bool grouped = p.experts > 0;
  const int64_t outputs = transposed ? p.k : p.n;
  const int64_t depth = transposed ? p.n : p.k;
  std::vector<Timed> found;
  for (const Tile& tile : tiles) {
    if (tile.decode == WgmmaDecode::Sums ? !sums : (transposed && (tile.columns < 128 || tile.groups > 2))) continue;
    if (grouped && tile.groups != 2) continue;
    const int64_t row_tiles = ceil_div(outputs, tile.groups * 64);
    const int64_t tiles = likely_pieces(p, tile.columns) * row_tiles;
    const int64_t most = max_pieces(p, tile.columns) * row_tiles;
    if (most > kMaxInt32 - p.sm_count) continue;
    const int64_t blocks = std::min<int64_t>(most, p.sm_count);
    const int64_t units = ceil_div(depth, kWgmmaUnitDepth);
    const double unit = tile.stage * (kWgmmaUnitDepth / 128);
    const double whole = tile.finish + unit * static_cast<double>(units);
    WgmmaPlan plan{.columns = tile.columns, .groups = tile.groups, .decode = tile.decode};
    plan.blocks = blocks;
    plan.whole_tiles = tiles;
    found.push_back({plan, kLaunch + whole * static_cast<double>(ceil_div(tiles, blocks))});
    if (grouped) continue;  // how many tiles there are, by which to share them, only the device knows
    for (const int splits : {2, 4}) {
      if (units < splits || tiles > linear_4bit_resident_clusters(p.sm_count, splits)) continue;
      WgmmaPlan split = plan;
      split.splits = splits;
      split.blocks = tiles * splits;
      found.push_back({split, kLaunch + unit * static_cast<double>(ceil_div(units, splits)) + tile.finish + kCluster});
    }
    // The tiles of the last wave are shared, or of the last two.
    const int64_t waves = tiles / p.sm_count;
    plan.blocks = std::min<int64_t>(p.sm_count, tiles * units);
    for (const int64_t whole_waves : {waves, waves - 1}) {
      plan.whole_tiles = whole_waves * p.sm_count;
      plan.shared_tiles = tiles - plan.whole_tiles;
      if (whole_waves < 0 || plan.shared_tiles == 0 || units == 1) continue;
      if ((plan.shared_tiles * units + 1) * (plan.blocks + 1) > kMaxInt32) continue;
      const int64_t tile_bytes = int64_t{tile.columns} * tile.groups * 64 * 4;
      plan.workspace_bytes = 2 * plan.blocks * (tile_bytes + 8);
      const double share_units = static_cast<double>(ceil_div(plan.shared_tiles * units, plan.blocks));
      const double apart = tile.columns == 256 ? kApart * unit : unit;
      const double shares = 1.0 + static_cast<double>(units) / share_units;
      found.push_back({plan, kLaunch + whole * static_cast<double>(whole_waves) + apart * share_units + tile.finish +
                                 kSharing + shares * (kShare + static_cast<double>(tile_bytes) / kShareBytes)});
    }
  }
  for (Timed& timed : found) timed.plan.time = timed.time;
  return found;
}

}  // namespace

WgmmaSchedule linear_4bit_wgmma_schedule(const WgmmaPlan& plan, int64_t m, int64_t outputs, int64_t depth) {
  return {.m_tiles = static_cast<int>(ceil_div(m, plan.columns)),
          .row_tiles = static_cast<int>(ceil_div(outputs, plan.groups * 64)),
          .whole_tiles = static_cast<int>(plan.whole_tiles),
          .units = static_cast<int>(ceil_div(depth, kWgmmaUnitDepth)),
          .blocks = static_cast<int>(plan.blocks),
          .splits = plan.splits};
}

WgmmaPlan linear_4bit_wgmma_plan(const Linear4bitProblem& p, bool transposed) {
  if (std::string why = obstacle(p, transposed); !why.empty()) return {.obstacle = why};
  const Timed* best = nullptr;
  const std::vector<Timed> plans = timed_plans(p, transposed);
  for (const Timed& timed : plans) {
    if (best == nullptr || timed.time < best->time) best = &timed;
  }
  if (best == nullptr) return {.obstacle = "2^31 tiles or more"};
  return best->plan;
}

std::vector<WgmmaPlan> linear_4bit_wgmma_plans(const Linear4bitProblem& p, bool transposed) {
  std::vector<WgmmaPlan> plans;
  if (!obstacle(p, transposed).empty()) return plans;
  for (const Timed& timed : timed_plans(p, transposed)) plans.push_back(timed.plan);
  return plans;
}

}  // namespace qbits
