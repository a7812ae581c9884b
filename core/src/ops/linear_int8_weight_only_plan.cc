#include "ops/linear_int8_weight_only_plan.h"

#include <algorithm>

#include "ops/ceil_div.h"

namespace qbits {
namespace {

using Kernel = LinearInt8WeightOnlyKernel;
using Plan = LinearInt8WeightOnlyPlan;
using Problem = LinearInt8WeightOnlyProblem;

constexpr int kTiles = static_cast<int>(std::size(kLinearInt8WeightOnlyTiles));
constexpr int64_t kRing = 96 << 10;  // bytes: what a block may have on every device from sm_80 on
constexpr int64_t kMaxRowM = 8;      // rows of x up to which a warp's reading of the weight is all that costs

Plan simt_plan(const Problem& p, Kernel kernel) {
  const bool rows = kernel == Kernel::SimtRow;
  const int64_t m = rows ? kLinearInt8WeightOnlyRowM : kLinearInt8WeightOnlySimtTile;
  const int64_t n = rows ? kLinearInt8WeightOnlyRowN : kLinearInt8WeightOnlySimtTile;
  return {.kernel = kernel, .blocks = ceil_div(p.m, m) * ceil_div(p.n, n)};
}

std::vector<Plan> mma_plans(const Problem& p) {
  std::vector<Plan> plans;
  const bool sm80 = p.compute_capability >= 80;
  const bool known = p.dtype == DType::Float16 || (p.dtype == DType::BFloat16 && sm80);
  if (!known || !p.aligned || p.k % 16 != 0 || p.k == 0) return plans;
  for (int tile = 0; tile < kTiles; ++tile) {
    const LinearInt8WeightOnlyTile& shape = kLinearInt8WeightOnlyTiles[tile];
    plans.push_back({.kernel = Kernel::Mma,
                     .isa = sm80 ? MmaIsa::Sm80 : MmaIsa::Sm75,
                     .tile = tile,
                     .stages = sm80 ? static_cast<int>(kRing / shape.stage_bytes()) : 2,
                     .blocks = ceil_div(p.m, int64_t{shape.m}) * ceil_div(p.n, int64_t{shape.n})});
    if (shape.m >= p.m) break;  // a higher tile would only be emptier
  }
  return plans;
}

}  // namespace

Plan linear_int8_weight_only_plan(const Problem& p) {
  const std::vector<Plan> plans = mma_plans(p);
  if (plans.empty()) return simt_plan(p, p.m <= kMaxRowM ? Kernel::SimtRow : Kernel::SimtTile);
  // The highest tile, which reads the weight the fewest times, that gives work to half of the device.
  for (auto plan = plans.rbegin(); plan != plans.rend(); ++plan) {
    if (2 * plan->blocks >= p.sm_count) return *plan;
  }
  return *std::ranges::max_element(plans, {}, &Plan::blocks);
}

std::vector<Plan> linear_int8_weight_only_plans(const Problem& p) {
  std::vector<Plan> plans = mma_plans(p);
  for (const Kernel kernel : {Kernel::SimtRow, Kernel::SimtTile}) plans.push_back(simt_plan(p, kernel));
  return plans;
}

std::string to_string(const Plan& plan) {
  const LinearInt8WeightOnlyTile& tile = kLinearInt8WeightOnlyTiles[plan.tile];
  std::string text = plan.kernel == Kernel::SimtRow ? "simt row" : "simt tile";
  if (plan.kernel == Kernel::Mma) {
    text = plan.isa == MmaIsa::Sm75 ? "mma (sm_75) " : "mma ";
    text += std::to_string(tile.n) + "x" + std::to_string(tile.m) + ", depth " + std::to_string(tile.k) + ", " +
            std::to_string(plan.stages) + " stages";
  }
  return text + ", " + std::to_string(plan.blocks) + (plan.blocks == 1 ? " block" : " blocks");
}

}  // namespace qbits
