#include "ops/linear_4bit_wgmma_plan.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "ops/ceil_div.h"
#include "ops/linear_4bit_plan.h"
#include "ops/resident_clusters.h"

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

constexpr double kLaunch = 1.7;            // from launch to the first product
constexpr double kNextLaunch = 2.5;        // to follow another launch
constexpr double kCluster[] = {1.3, 2.0};  // for the blocks of a cluster of 2, of 4 to add their sums
constexpr double kWideCluster = 0.6;       // and more where tiles are wide
constexpr double kShareX = 0.98;           // what a tile of blocks that share x takes of that of one alone
constexpr double kPairs = 2.7;             // for two clusters to hear of each other
constexpr double kSharing = 2.0;           // for the sums of shared tiles that a block has, and for each share of one,
constexpr double kShare = 0.55;            // to hear of it,
constexpr double kShareBytes = 100'000;    // and a microsecond to leave and take so much
constexpr double kWideApart = 1.43;        // a stage of wide tiles that do not keep step,
constexpr double kApart = 1.15;            // and by how much it is slower where they are apart in depth and share no x

std::string obstacle(const Linear4bitProblem& p, bool transposed) {
  if (p.compute_capability != 90) return "compute capability is not 9.0";
  if (std::string why = linear_4bit_mma_obstacle(p, 32); !why.empty()) return why;
  if (transposed && p.n % 8 != 0) return "N is no multiple of 8";
  const int64_t rows = p.n * std::max<int64_t>(p.experts, 1);
  if (p.m > kMaxInt32 || rows > kMaxInt32 || p.k > kMaxInt32) return "sizes past 2^31";
  if (rows * (p.k / 32) > 2 * kMaxInt32) return "2^32 runs of scales or more";
  return "";
}

// Every plan of one launch, of a problem without obstacle.
std::vector<WgmmaPlan> timed_plans(const Linear4bitProblem& p, bool transposed) {
  const bool sums = !transposed && p.block_size % 64 == 0 && p.k % 64 == 0;
  const bool affine = p.coding == Coding::Affine;
  const double with_zeros = affine ? 1.03 : 1.0;
  const double looked_up = p.nested ? 1.09 : with_zeros;  // the scales of three row groups
  // Wide tiles of the same weight rows, one after the other in x, share codes in the L2 as long as they keep step; many
  // and long ones lower the clock.
  const double m_tiles = std::min(static_cast<double>(ceil_div(p.m, 256)), 16.0);
  // Codebooks of float16 products come as fractions, slower by what they were for bfloat16 too.
  const double slower = p.dtype == DType::Float16 && !affine ? 1.06 : 1.0;
  const double wide =
      slower * (transposed ? 1.38 + 0.012 * m_tiles : 1.29 + 0.004 * m_tiles * static_cast<double>(p.k) / 8192);
  const double half_wide = slower * (transposed ? 1.15 : 0.88);
  const Tile tiles[] = {
      {256, 2, WgmmaDecode::Weights, wide, 0.9},
      {128, 2, WgmmaDecode::Weights, half_wide, 1.0},
      {64, 2, WgmmaDecode::Weights, 0.70 * slower, 0.7},
      {128, 2, WgmmaDecode::Sums, 0.91, 1.0},
      {64, 2, WgmmaDecode::Sums, 0.58 * with_zeros, 0.7},
      {64, 1, WgmmaDecode::Sums, 0.32 * with_zeros, 0.7},
      {32, 3, WgmmaDecode::Sums, 0.60 * looked_up, 0.5},
      {32, 2, WgmmaDecode::Sums, 0.43 * with_zeros, 0.5},
      {32, 1, WgmmaDecode::Sums, 0.24 * with_zeros, 0.5},
      {16, 3, WgmmaDecode::Sums, 0.54 * looked_up, 0.5},
      {16, 2, WgmmaDecode::Sums, 0.39 * with_zeros, 0.5},
      {16, 1, WgmmaDecode::Sums, 0.22 * with_zeros, 0.5},
      {256, 2, WgmmaDecode::Packed, 0.99 * wide, 0.9},
      {128, 2, WgmmaDecode::Packed, affine ? 0.80 : 0.84, affine ? 1.6 : 1.0},
  };
  const bool grouped = p.experts > 0;
  const int64_t outputs = transposed ? p.k : p.n;
  const int64_t depth = transposed ? p.n : p.k;
  std::vector<WgmmaPlan> found;
  const auto add = [&](WgmmaPlan plan, double time) {
    plan.time = time;
    found.push_back(std::move(plan));
  };
  for (const Tile& tile : tiles) {
    if (tile.decode == WgmmaDecode::Weights ? transposed && (tile.columns < 128 || tile.groups > 2) : !sums) continue;
    if (tile.decode == WgmmaDecode::Packed && !p.packs) continue;
    if (tile.decode == WgmmaDecode::Sums && tile.columns == 128 && affine) continue;  // lacks registers
    if (grouped && tile.groups != 2) continue;
    const int64_t row_tiles = ceil_div(outputs, tile.groups * 64);
    const int64_t tiles = likely_pieces(p, tile.columns) * row_tiles;
    const int64_t most = max_pieces(p, tile.columns) * row_tiles;
    if (most > kMaxInt32 - p.sm_count) continue;
    const int64_t blocks = std::min<int64_t>(most, p.sm_count);
    const int64_t units = ceil_div(depth, kWgmmaUnitDepth);
    const double unit = tile.stage * (kWgmmaUnitDepth / 128);
    const double whole = tile.finish + unit * static_cast<double>(units);
    const int64_t tile_bytes = int64_t{tile.columns} * tile.groups * 64 * 4;
    WgmmaPlan plan{.columns = tile.columns, .groups = tile.groups, .decode = tile.decode};
    plan.blocks = blocks;
    plan.whole_tiles = tiles;
    if (tile.groups > 1) add(plan, kLaunch + whole * static_cast<double>(ceil_div(tiles, blocks)));
    if (tile.columns == 256 && row_tiles > 1 && p.sm_count > 1 && !grouped) {
      WgmmaPlan shares = plan;
      shares.sharers = 2;
      shares.whole_tiles = (row_tiles + row_tiles % 2) * ceil_div(p.m, tile.columns);
      shares.blocks = std::min<int64_t>(shares.whole_tiles, p.sm_count - p.sm_count % 2);
      add(shares, kLaunch + kShareX * whole * static_cast<double>(ceil_div(shares.whole_tiles, shares.blocks)));
    }
    if (grouped) continue;  // how many tiles there are, by which to share them, only the device knows
    const double cluster = tile.finish + (tile.columns == 256 ? kWideCluster : 0.0);
    for (const int splits : {2, 4}) {
      if (units < splits || tiles > resident_clusters(p.sm_count, splits)) continue;
      WgmmaPlan split = plan;
      split.splits = splits;
      split.blocks = tiles * splits;
      add(split, kLaunch + unit * static_cast<double>(ceil_div(units, splits)) + cluster + kCluster[splits / 4]);
    }
    if (units >= 4 && tiles <= resident_clusters(p.sm_count, 2) / 2) {
      WgmmaPlan pairs = plan;
      pairs.splits = 2;
      pairs.clusters = 2;
      pairs.blocks = tiles * 4;
      // Sums of each cluster, and a count for each warpgroup that finishes some.
      const int finishers = wgmma_finishers(tile.columns, tile.groups == 1 ? 4 : 2);
      pairs.workspace_bytes = 2 * tiles * tile_bytes + ceil_div(tiles * tile.groups * finishers, 2) * 16;
      add(pairs, kLaunch + unit * static_cast<double>(ceil_div(units, 4)) + cluster + kCluster[0] + kPairs +
                     static_cast<double>(tile_bytes) / kShareBytes);
    }
    if (tile.groups == 1) continue;
    // The tiles of the last wave are shared, or of the last two; or each by as many blocks as there are for it, which
    // then have no other.
    const int64_t waves = tiles / p.sm_count;
    const auto share = [&](int64_t whole_waves, int64_t share_blocks) {
      WgmmaPlan shared = plan;
      shared.blocks = std::min<int64_t>(share_blocks, tiles * units);
      shared.whole_tiles = whole_waves * p.sm_count;
      shared.shared_tiles = tiles - shared.whole_tiles;
      if (whole_waves < 0 || shared.shared_tiles == 0 || units == 1) return;
      if (shared.shared_tiles * units < shared.blocks) return;  // each has a share, for the last waits for all
      if ((shared.shared_tiles * units + 1) * (shared.blocks + 1) > kMaxInt32) return;
      shared.workspace_bytes = shared.blocks * (tile_bytes + 16);
      const double share_units = static_cast<double>(ceil_div(shared.shared_tiles * units, shared.blocks));
      // Shared wide tiles do not keep step, nor do the whole ones after them.
      const double step = tile.columns == 256 ? std::max(kWideApart, wide) * (kWgmmaUnitDepth / 128) : unit;
      const double apart = tile.columns == 256 ? kApart * step : step;
      const double full = tile.finish + step * static_cast<double>(units);
      const bool even = shared.blocks % shared.shared_tiles == 0;  // otherwise blocks have parts of two tiles
      const double shares = static_cast<double>(units) / share_units + (even ? 0.0 : 1.0);
      const double parts = std::max(static_cast<double>(shared.shared_tiles) / static_cast<double>(shared.blocks), 1.0);
      add(shared, kLaunch + full * static_cast<double>(whole_waves) + apart * share_units + tile.finish +
                      kSharing * parts + shares * (kShare + static_cast<double>(tile_bytes) / kShareBytes));
    };
    share(waves, p.sm_count);
    share(waves - 1, p.sm_count);
    if (p.sm_count / tiles > 1 && p.sm_count % tiles != 0) share(0, p.sm_count / tiles * tiles);
  }
  return found;
}

// Where the last wave of tiles would leave multiprocessors without work, its rows may be a launch of their own, in the
// tiles that suit them. Appends such plans, of linear_4bit alone, for gradients took longer so; not those that cannot
// take less than `limit`, since each costs as much time to plan as one launch does.
void add_plans_of_two(const Linear4bitProblem& p, double limit, std::vector<WgmmaPlan>& plans) {
  const size_t single = plans.size();
  for (size_t i = 0; i < single; ++i) {
    WgmmaPlan both = plans[i];
    if (both.splits > 1 || both.shared_tiles > 0 || both.whole_tiles <= both.blocks) continue;
    const int64_t m_tiles = ceil_div(p.m, both.columns);
    const int64_t waves = ceil_div(both.whole_tiles, both.blocks);
    const int64_t row_tiles = (waves - 1) * both.blocks / m_tiles;
    const int64_t rows = (row_tiles - row_tiles % both.sharers) * both.groups * 64;
    if (rows == 0 || rows >= p.n) continue;
    both.time =
        kLaunch + (both.time - kLaunch) * static_cast<double>(waves - 1) / static_cast<double>(waves) + kNextLaunch;
    if (both.time + kLaunch >= limit) continue;
    Linear4bitProblem last = p;
    last.n = p.n - rows;
    WgmmaPlan rest = std::ranges::min(timed_plans(last, false), {}, &WgmmaPlan::time);
    rest.first = rows;
    both.whole_tiles = rows / (both.groups * 64) * m_tiles;
    both.blocks = std::min<int64_t>(both.whole_tiles, both.blocks);
    both.time += rest.time;
    both.rest = {std::move(rest)};
    plans.push_back(std::move(both));
  }
}

bool may_be_two(const Linear4bitProblem& p, bool transposed) { return !transposed && p.experts == 0; }

}  // namespace

WgmmaSchedule linear_4bit_wgmma_schedule(const WgmmaPlan& plan, int64_t m, int64_t outputs, int64_t depth) {
  const int64_t rows = (plan.rest.empty() ? outputs : plan.rest.front().first) - plan.first;
  const WgmmaSchedule schedule{.m_tiles = static_cast<int>(ceil_div(m, plan.columns)),
                               .row_tiles = static_cast<int>(ceil_div(rows, plan.groups * 64 * plan.sharers)),
                               .whole_tiles = static_cast<int>(plan.whole_tiles / plan.sharers),
                               .units = static_cast<int>(ceil_div(depth, kWgmmaUnitDepth)),
                               .blocks = static_cast<int>(plan.blocks / plan.sharers),
                               .splits = plan.splits,
                               .clusters = plan.clusters};
  return schedule.with_divisors();
}

WgmmaPlan linear_4bit_wgmma_plan(const Linear4bitProblem& p, bool transposed) {
  if (std::string why = obstacle(p, transposed); !why.empty()) return {.obstacle = why};
  std::vector<WgmmaPlan> plans = timed_plans(p, transposed);
  if (plans.empty()) return {.obstacle = "2^31 tiles or more"};
  const double limit = std::ranges::min_element(plans, {}, &WgmmaPlan::time)->time;
  if (may_be_two(p, transposed)) add_plans_of_two(p, limit, plans);
  return *std::ranges::min_element(plans, {}, &WgmmaPlan::time);
}

std::vector<WgmmaPlan> linear_4bit_wgmma_plans(const Linear4bitProblem& p, bool transposed) {
  if (!obstacle(p, transposed).empty()) return {};
  std::vector<WgmmaPlan> plans = timed_plans(p, transposed);
  if (may_be_two(p, transposed)) add_plans_of_two(p, std::numeric_limits<double>::infinity(), plans);
  return plans;
}

}  // namespace qbits
