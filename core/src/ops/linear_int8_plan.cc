#include "ops/linear_int8_plan.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "ops/ceil_div.h"
#include "ops/int8.h"
#include "ops/resident_clusters.h"

namespace qbits {
namespace {

using Wgmma = LinearInt8Wgmma;

constexpr int kSimtTile = 64;
constexpr int64_t kMaxSize = 1 << 30;  // of M, N and K: what wgmma counts in 32 bits

// Fitted to times of an H200, the quantizer's without a threshold included: in clocks of a multiprocessor.
constexpr double kBytesPerClock = 18.0;  // that it draws from memory
constexpr double kAgain = 0.43;          // what a weight costs again, from the L2, for each further tile of rows of x
constexpr double kStep = 260.0;          // of a stage of the depth
constexpr double kStepColumn = 2.25;     // and for each row of x
constexpr double kStepOutliers = 186.0;
constexpr double kLaunch = 6200.0;
constexpr double kTileColumn = 38.0;
constexpr double kTileOutliers = 4670.0;
constexpr double kSplit = 1870.0;  // to add the sums of a cluster of two, and of more
constexpr double kSplitColumn = 36.0;
constexpr double kFewStep = 0.64;         // a stage of half as many weight rows takes so much of the time
constexpr double kListed = 1030.0;        // of a tile whose block lists outliers
constexpr double kListedColumn = 0.0135;  // and for each row of x and column of its
constexpr double kNextBlock = 3850.0;     // where blocks have one tile each

bool wgmma_fits(const LinearInt8Problem& p) {
  return p.compute_capability == 90 && p.aligned && p.k % 16 == 0 && p.k > 0 && p.k <= kInt8ExactDepth &&
         std::max(p.m, p.n) <= kMaxSize;
}

LinearInt8Plan wgmma_plan(const LinearInt8Problem& p, int rows, int columns, int splits, bool lists) {
  const bool few = rows == Wgmma::kFewRows;
  const bool goes_on = splits == 1 && Wgmma::goes_on(rows, columns, lists);
  const int64_t tiles_m = ceil_div(p.m, int64_t{columns});
  const int64_t tiles = ceil_div(p.n, int64_t{rows}) * tiles_m;
  const int64_t stages = ceil_div(p.k, int64_t{Wgmma::kDepth});
  const double waves = static_cast<double>(ceil_div(tiles, resident_clusters(p.sm_count, splits)));
  const double share = static_cast<double>(ceil_div(stages, int64_t{splits}));
  const double weight_bytes = static_cast<double>(p.n) * static_cast<double>(p.k) / p.sm_count;
  const double memory = weight_bytes / kBytesPerClock * (1.0 + kAgain * static_cast<double>(tiles_m - 1));
  const double step =
      (kStep + kStepColumn * columns + (p.outliers && !lists ? kStepOutliers : 0.0)) * (few ? kFewStep : 1.0);
  const double outliers = lists ? kListed + kListedColumn * columns * static_cast<double>(p.k) : kTileOutliers;
  const double end = kTileColumn * columns + (p.outliers ? outliers : 0.0) +
                     (kSplit + kSplitColumn * columns) * std::sqrt(splits - 1.0);
  const double start = kLaunch + (few || lists ? (waves - 1) * kNextBlock : 0.0);
  return {.kernel = LinearInt8Kernel::Wgmma,
          .rows = rows,
          .columns = columns,
          .splits = splits,
          .lists = lists,
          .tiles = tiles,
          .blocks = goes_on ? std::min<int64_t>(tiles, p.sm_count) : tiles * splits,
          .time = start + std::max(memory, waves * share * step) + waves * end};
}

LinearInt8Plan simt_plan(const LinearInt8Problem& p) {
  const int64_t tiles = ceil_div(p.n, int64_t{kSimtTile}) * ceil_div(p.m, int64_t{kSimtTile});
  return {.kernel = LinearInt8Kernel::Simt, .columns = kSimtTile, .tiles = tiles, .blocks = tiles};
}

bool mma_fits(const LinearInt8Problem& p) { return p.compute_capability >= 75 && p.k <= kInt8ExactDepth; }

Int8MmaProblem mma_problem(const LinearInt8Problem& p) {
  return {.n = p.n, .k = p.k, .m = p.m, .compute_capability = p.compute_capability, .sm_count = p.sm_count};
}

LinearInt8Plan mma_plan(const Int8MmaPlan& mma) {
  return {.kernel = LinearInt8Kernel::Mma, .columns = mma.columns, .tiles = mma.tiles, .blocks = mma.tiles, .mma = mma};
}

bool few_fits(const LinearInt8Problem& p, int columns) {
  return p.dtype != DType::Float32 && columns <= Wgmma::kFewColumns && p.m <= Wgmma::kMostFew;
}

bool lists_fit(const LinearInt8Problem& p, int columns) {
  return p.outliers && p.dtype != DType::Float32 && p.x_aligned && columns <= Wgmma::kFewColumns &&
         p.k <= Wgmma::kListedDepth && p.m <= Wgmma::kMostListed;
}

std::vector<LinearInt8Plan> wgmma_plans(const LinearInt8Problem& p) {
  std::vector<LinearInt8Plan> plans;
  if (!wgmma_fits(p)) return plans;
  const int64_t stages = ceil_div(p.k, int64_t{Wgmma::kDepth});
  for (const int columns : Wgmma::kColumns) {
    // Outliers of float32, multiplied one by one, take more registers than such tiles leave.
    if (p.dtype == DType::Float32 && columns > 128) break;
    for (const int splits : Wgmma::kSplits) {
      if (splits > stages) break;
      const bool lists = splits == 1 && lists_fit(p, columns);
      // Few rows first: where memory bounds both, more blocks ask for more at once.
      if (splits == 1 && few_fits(p, columns) && (lists || !p.outliers)) {
        plans.push_back(wgmma_plan(p, Wgmma::kFewRows, columns, splits, lists));
      }
      if (lists) plans.push_back(wgmma_plan(p, Wgmma::kRows, columns, splits, true));
      plans.push_back(wgmma_plan(p, Wgmma::kRows, columns, splits, false));
    }
    if (columns >= p.m) break;  // a wider tile would only be emptier
  }
  std::erase_if(plans, [](const LinearInt8Plan& plan) { return plan.tiles * plan.splits > INT32_MAX; });
  return plans;
}

}  // namespace

LinearInt8Plan linear_int8_plan(const LinearInt8Problem& p) {
  const std::vector<LinearInt8Plan> plans = wgmma_plans(p);
  const auto best = std::ranges::min_element(plans, {}, &LinearInt8Plan::time);
  if (best != plans.end()) return *best;
  return mma_fits(p) ? mma_plan(int8_mma_plan("linear_int8", mma_problem(p))) : simt_plan(p);
}

std::vector<LinearInt8Plan> linear_int8_plans(const LinearInt8Problem& p) {
  std::vector<LinearInt8Plan> plans = wgmma_plans(p);
  if (mma_fits(p)) std::ranges::transform(int8_mma_plans(mma_problem(p)), std::back_inserter(plans), mma_plan);
  plans.push_back(simt_plan(p));
  return plans;
}

std::string to_string(const LinearInt8Plan& plan) {
  std::string text;
  switch (plan.kernel) {
    case LinearInt8Kernel::Simt:
      text = "simt 64x" + std::to_string(plan.columns);
      break;
    case LinearInt8Kernel::Mma:
      text = to_string(plan.mma);
      break;
    case LinearInt8Kernel::Wgmma:
      text = "wgmma " + std::to_string(plan.rows) + "x" + std::to_string(plan.columns) + ", " +
             std::to_string(plan.splits) + (plan.splits == 1 ? " split" : " splits");
  }
  return text + ", " + std::to_string(plan.blocks) + (plan.blocks == 1 ? " block" : " blocks") +
         (plan.lists ? ", lists outliers" : "");
}

}  // namespace qbits
