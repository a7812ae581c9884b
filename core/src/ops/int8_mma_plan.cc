#include "ops/int8_mma_plan.h"

#include <algorithm>
#include <iterator>

#include "ops/ceil_div.h"
#include "qbits/error.h"

namespace qbits {
namespace {

// A multiprocessor's, in clocks.
constexpr double kProductsPerClock = 1024.0;  // what mma.sync reaches of up to 2048
constexpr double kBytesPerClock = 32.0;       // from the L2
constexpr double kTile = 2000.0;

const Linear4bitTile& tile_of(const Int8MmaPlan& plan) {
  return *std::ranges::find(Int8Mma::kTiles, plan.columns, &Linear4bitTile::m);
}

Int8MmaPlan plan_of(const Int8MmaProblem& p, MmaIsa isa, const Linear4bitTile& tile) {
  Int8MmaPlan plan{.isa = isa, .columns = tile.m};
  plan.tiles = p.batch * ceil_div(p.n, int64_t{tile.n}) * ceil_div(p.m, int64_t{tile.m});

  const SharedLimit limit = shared_limit(p.compute_capability);
  const int stage = Int8Mma::stage_bytes(tile);
  // A second block on an SM is worth more than a deeper ring; 1 KB of each block is the system's.
  const int half = limit.sm / 2 - 1024;
  const int budget = half >= 3 * stage && half >= Int8Mma::finish_bytes(tile) ? half : limit.block;
  plan.stages = isa == MmaIsa::Sm75 ? Int8Mma::kSm75Stages : std::clamp(budget / stage, 2, Int8Mma::kMaxStages);
  plan.shared_bytes = std::max(plan.stages * stage, Int8Mma::finish_bytes(tile));

  const double products = static_cast<double>(tile.m) * tile.n * tile.k;
  const double step = std::max(products / kProductsPerClock, stage / kBytesPerClock);
  const double steps = static_cast<double>(ceil_div(p.k, int64_t{tile.k}));
  plan.time = static_cast<double>(ceil_div(plan.tiles, int64_t{p.sm_count})) * (steps * step + kTile);
  return plan;
}

std::vector<Int8MmaPlan> plans_of(const Int8MmaProblem& p, MmaIsa isa) {
  std::vector<Int8MmaPlan> plans;
  for (const Linear4bitTile& tile : Int8Mma::kTiles) plans.push_back(plan_of(p, isa, tile));
  std::erase_if(plans, [](const Int8MmaPlan& plan) { return plan.tiles > INT32_MAX; });
  return plans;
}

MmaIsa isa_of(const Int8MmaProblem& p) { return p.compute_capability < 80 ? MmaIsa::Sm75 : MmaIsa::Sm80; }

}  // namespace

Int8MmaPlan int8_mma_plan(std::string_view op, const Int8MmaProblem& p) {
  const std::vector<Int8MmaPlan> plans = plans_of(p, isa_of(p));
  if (plans.empty()) {
    throw Error(ErrorCode::Unsupported, "[" + std::string(op) + "] size: got " + std::to_string(p.batch) +
                                            " products of " + std::to_string(p.m) + " x " + std::to_string(p.n) +
                                            ", want at most " + std::to_string(INT32_MAX) + " tiles of them");
  }
  return *std::ranges::min_element(plans, {}, &Int8MmaPlan::time);
}

std::vector<Int8MmaPlan> int8_mma_plans(const Int8MmaProblem& p) {
  std::vector<Int8MmaPlan> plans = plans_of(p, MmaIsa::Sm75);  // every device has those instructions
  if (isa_of(p) == MmaIsa::Sm80) std::ranges::move(plans_of(p, MmaIsa::Sm80), std::back_inserter(plans));
  return plans;
}

std::string to_string(const Int8MmaPlan& plan) {
  const Linear4bitTile& tile = tile_of(plan);
  std::string text = plan.isa == MmaIsa::Sm75 ? "mma of sm_75 " : "mma ";
  text += std::to_string(tile.n) + "x" + std::to_string(tile.m) + "x" + std::to_string(tile.k);
  return text + ", " + std::to_string(plan.stages) + " stages, " + std::to_string(plan.shared_bytes) + " B shared";
}

}  // namespace qbits
