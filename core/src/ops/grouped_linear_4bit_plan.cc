#include "ops/grouped_linear_4bit_plan.h"

#include <algorithm>
#include <iterator>

#include "ops/ceil_div.h"
#include "qbits/error.h"

namespace qbits {
namespace {

// Rows of x an expert has on average up to which a kernel is the fastest.
constexpr int64_t kSimtRowRows = 16;
constexpr int64_t kStreamRows = 16;

void check_problem(const Linear4bitProblem& p) {
  check_linear_4bit_problem(p);
  if (p.experts < 1) {
    throw Error(ErrorCode::Unsupported,
                "[grouped_linear_4bit] experts: got " + std::to_string(p.experts) + ", want at least 1");
  }
}

int64_t rows_of_expert(const Linear4bitProblem& p) { return ceil_div(p.m, std::min(p.experts, p.m)); }

}  // namespace

Linear4bitPlan grouped_linear_4bit_plan(const Linear4bitProblem& p) {
  check_problem(p);
  const int64_t rows = rows_of_expert(p);
  if (const std::string obstacle = linear_4bit_mma_obstacle(p, 32); !obstacle.empty()) {
    Linear4bitPlan plan = rows <= kSimtRowRows ? linear_4bit_simt_row_plan(p) : linear_4bit_simt_tile_plan(p, false);
    plan.reason = obstacle;
    return plan;
  }
  if (rows <= kStreamRows) {
    if (const auto few = linear_4bit_few_rows_plan(p, rows)) return *few;
  }
  if (const WgmmaPlan wgmma = linear_4bit_wgmma_plan(p, false); wgmma.obstacle.empty()) {
    return linear_4bit_wgmma_plan_of(wgmma);
  }
  Linear4bitPlan plan = linear_4bit_mma_plan(p, rows, false);
  plan.reason = "smallest tile that holds an expert's rows";
  return plan;
}

std::vector<Linear4bitPlan> grouped_linear_4bit_plans(const Linear4bitProblem& p) {
  check_problem(p);
  std::vector<Linear4bitPlan> plans = {linear_4bit_simt_row_plan(p), linear_4bit_simt_tile_plan(p, false)};
  if (!linear_4bit_mma_obstacle(p, 32).empty()) return plans;
  for (const Linear4bitTile& tile : kLinear4bitTiles) plans.push_back(linear_4bit_mma_plan(p, tile.m, false));
  std::ranges::move(linear_4bit_stream_plans(p), std::back_inserter(plans));
  std::ranges::transform(linear_4bit_wgmma_plans(p, false), std::back_inserter(plans), linear_4bit_wgmma_plan_of);
  return plans;
}

Linear4bitPlan grouped_linear_4bit_grad_x_plan(const Linear4bitProblem& p) {
  check_problem(p);
  if (const std::string obstacle = linear_4bit_grad_x_mma_obstacle(p); !obstacle.empty()) {
    Linear4bitPlan plan = linear_4bit_simt_tile_plan(p, true);
    plan.reason = obstacle;
    return plan;
  }
  const WgmmaPlan wgmma = linear_4bit_wgmma_plan(p, true);
  if (wgmma.obstacle.empty()) return linear_4bit_wgmma_plan_of(wgmma);
  Linear4bitPlan plan = linear_4bit_mma_plan(p, rows_of_expert(p), true);
  plan.reason = "smallest tile that holds an expert's rows";
  return plan;
}

std::vector<Linear4bitPlan> grouped_linear_4bit_grad_x_plans(const Linear4bitProblem& p) {
  check_problem(p);
  std::vector<Linear4bitPlan> plans = {linear_4bit_simt_tile_plan(p, true)};
  if (!linear_4bit_grad_x_mma_obstacle(p).empty()) return plans;
  for (const Linear4bitTile& tile : kLinear4bitGradXTiles) plans.push_back(linear_4bit_mma_plan(p, tile.m, true));
  std::ranges::transform(linear_4bit_wgmma_plans(p, true), std::back_inserter(plans), linear_4bit_wgmma_plan_of);
  return plans;
}

}  // namespace qbits
