#include "ops/linear_4bit_wgmma_plan.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "ops/ceil_div.h"
#include "ops/linear_4bit_plan.h"

namespace qbits {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr int64_t kStageDepth = 128;
constexpr int64_t kSplitDepth = 256;  // of which scales are loaded at once

// A tile and what a block of it takes, measured on an H200 (microseconds).
struct Tile {
  int columns;
  int groups;
  WgmmaDecode decode;
  double stage;   // 128 of depth
  double finish;  // to write the sums
};

constexpr double kLaunch = 4.5;       // from launch to the first product
constexpr double kSplitFinish = 1.5;  // to add the sums of a cluster

// Where scales are in the weights, bfloat16 has a cheaper decoder than the others.
WgmmaDecode weights_decode(const Linear4bitProblem& p) {
  return p.coding == Coding::Codebook && p.dtype == DType::BFloat16 ? WgmmaDecode::Weights16 : WgmmaDecode::Weights32;
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

// Clusters of `blocks` that run at once: larger ones do not fill the device, whose processors come in groups.
int64_t resident_clusters(int sm_count, int blocks) {
  return std::max<int64_t>(1, (blocks > 2 ? sm_count * 9 / 10 : sm_count) / blocks);
}

struct Timed {
  WgmmaPlan plan;
  double time;
  bool wise;  // no other number of splits or shared tiles is sure to be better
};

// Every plan of a problem without obstacle.
std::vector<Timed> timed_plans(const Linear4bitProblem& p, bool transposed) {
  const WgmmaDecode weights = weights_decode(p);
  const bool sums = !transposed && p.coding == Coding::Codebook && p.block_size % 64 == 0 && p.k % 64 == 0;
  const double slower = weights == WgmmaDecode::Weights32 ? 1.1 : 1.0;
  const Tile tiles[] = {{256, 2, weights, 1.48 * slower, 1.5}, {128, 2, weights, 1.08 * slower, 1.0},
                        {64, 2, weights, 0.84 * slower, 0.7},  {128, 2, WgmmaDecode::Sums, 0.98, 1.0},
                        {64, 4, WgmmaDecode::Sums, 1.19, 0.7}, {64, 2, WgmmaDecode::Sums, 0.68, 0.7},
                        {32, 4, WgmmaDecode::Sums, 0.90, 0.5}, {32, 2, WgmmaDecode::Sums, 0.59, 0.5}};
  const bool grouped = p.experts > 0;
  const int64_t outputs = transposed ? p.k : p.n;
  const int64_t depth = transposed ? p.n : p.k;
  std::vector<Timed> found;
  for (const Tile& tile : tiles) {
    if (tile.decode == WgmmaDecode::Sums ? !sums : (transposed && tile.columns < 128)) continue;
    if (grouped && tile.groups != 2) continue;
    const int64_t m_tiles = likely_pieces(p, tile.columns);
    const int64_t row_tiles = ceil_div(outputs, tile.groups * 64);
    // Sharing x is worth it where x is long and there are more blocks than one wave.
    const int wise_multicast = m_tiles >= 4 && m_tiles * row_tiles > p.sm_count ? 2 : 1;
    for (int multicast = 1; multicast <= (grouped ? 1 : 2); ++multicast) {
      for (int splits = 1; splits * multicast <= (grouped ? 1 : 8); splits *= 2) {
        const int64_t per_split = ceil_div(ceil_div(depth, splits), kSplitDepth) * kSplitDepth;
        if (splits > 1 && ceil_div(depth, per_split) != splits) continue;
        const int64_t clusters = m_tiles * ceil_div(row_tiles, multicast);
        const int64_t most = max_pieces(p, tile.columns) * ceil_div(row_tiles, multicast);
        const int64_t resident = resident_clusters(p.sm_count, multicast * splits);
        const int64_t waves = ceil_div(clusters, resident);
        const int64_t blocks = (splits > 1 ? clusters : std::min(most, resident)) * multicast * splits;
        if (blocks > kMaxInt32) continue;
        const double time = kLaunch + (splits > 1 ? kSplitFinish : 0) +
                            static_cast<double>(waves) *
                                (tile.finish + tile.stage * static_cast<double>(ceil_div(per_split, kStageDepth)));
        found.push_back({{.columns = tile.columns,
                          .groups = tile.groups,
                          .decode = tile.decode,
                          .multicast = multicast,
                          .splits = splits,
                          .split_depth = per_split,
                          .blocks = blocks},
                         time,
                         (grouped || multicast == wise_multicast) && (splits == 1 || (multicast == 1 && waves == 1))});
      }
    }
  }
  return found;
}

}  // namespace

WgmmaPlan linear_4bit_wgmma_plan(const Linear4bitProblem& p, bool transposed) {
  if (std::string why = obstacle(p, transposed); !why.empty()) return {.obstacle = why};
  const Timed* best = nullptr;
  const std::vector<Timed> plans = timed_plans(p, transposed);
  for (const Timed& timed : plans) {
    if (timed.wise && (best == nullptr || timed.time < best->time)) best = &timed;
  }
  if (best == nullptr) return {.obstacle = "2^31 thread blocks or more"};
  return best->plan;
}

std::vector<WgmmaPlan> linear_4bit_wgmma_plans(const Linear4bitProblem& p, bool transposed) {
  std::vector<WgmmaPlan> plans;
  if (!obstacle(p, transposed).empty()) return plans;
  for (const Timed& timed : timed_plans(p, transposed)) plans.push_back(timed.plan);
  return plans;
}

}  // namespace qbits
