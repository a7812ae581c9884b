#include "ops/linear_int8_weight_only_plan.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace qbits {
namespace {

using Kernel = LinearInt8WeightOnlyKernel;
using Plan = LinearInt8WeightOnlyPlan;
using Problem = LinearInt8WeightOnlyProblem;

TEST(LinearInt8WeightOnlyPlan, EveryPlanCoversTheProblem) {
  for (const int capability : {75, 80, 86, 90, 120}) {
    for (const DType dtype : {DType::Float32, DType::BFloat16, DType::Float16}) {
      for (const int64_t n : {1, 100, 4096, 28672}) {
        for (const int64_t k : {0, 1, 16, 100, 4096, 1 << 20}) {
          for (const int64_t m : {1, 8, 9, 16, 17, 32, 33, 64, 300, 4096}) {
            const Problem problem{.n = n, .k = k, .m = m, .dtype = dtype, .compute_capability = capability};
            const std::vector<Plan> plans = linear_int8_weight_only_plans(problem);
            EXPECT_EQ(std::ranges::count(plans, linear_int8_weight_only_plan(problem)), 1);
            EXPECT_EQ(std::ranges::count(plans, Kernel::SimtRow, &Plan::kernel), 1);
            EXPECT_EQ(std::ranges::count(plans, Kernel::SimtTile, &Plan::kernel), 1);
            for (const Plan& plan : plans) {
              int64_t tile_m = plan.kernel == Kernel::SimtRow ? 4 : 64,
                      tile_n = plan.kernel == Kernel::SimtRow ? 8 : 64;
              if (plan.kernel == Kernel::Mma) {
                tile_m = kLinearInt8WeightOnlyTiles[plan.tile].m;
                tile_n = kLinearInt8WeightOnlyTiles[plan.tile].n;
                EXPECT_GE(plan.stages, 2) << to_string(plan);
                EXPECT_LE(plan.shared_bytes(), capability == 75 ? 64 << 10 : 99 << 10) << to_string(plan);
              }
              EXPECT_EQ(plan.blocks, (m + tile_m - 1) / tile_m * ((n + tile_n - 1) / tile_n)) << to_string(plan);
            }
          }
        }
      }
    }
  }
}

TEST(LinearInt8WeightOnlyPlan, TensorCoresOnlyWhereTheyCan) {
  const Problem good{.n = 4096, .k = 4096, .m = 64};
  EXPECT_EQ(linear_int8_weight_only_plan(good).kernel, Kernel::Mma);
  for (const auto& change : std::initializer_list<void (*)(Problem&)>{
           [](Problem& p) { p.aligned = false; }, [](Problem& p) { p.k = 4104; }, [](Problem& p) { p.k = 0; },
           [](Problem& p) { p.dtype = DType::Float32; }, [](Problem& p) { p.compute_capability = 75; }}) {
    Problem problem = good;
    change(problem);
    EXPECT_EQ(linear_int8_weight_only_plan(problem).kernel, Kernel::SimtTile);
    problem.m = 8;
    EXPECT_EQ(linear_int8_weight_only_plan(problem).kernel, Kernel::SimtRow);
  }
  Problem turing = good;
  turing.compute_capability = 75;
  turing.dtype = DType::Float16;
  EXPECT_EQ(linear_int8_weight_only_plan(turing).isa, MmaIsa::Sm75);
  EXPECT_EQ(linear_int8_weight_only_plan(good).isa, MmaIsa::Sm80);
}

// Few rows of x take the lowest tile that holds them, many the highest, unless that leaves the device idle.
TEST(LinearInt8WeightOnlyPlan, TilesFollowTheProblem) {
  const auto rows = [](int64_t n, int64_t m) {
    return kLinearInt8WeightOnlyTiles[linear_int8_weight_only_plan({.n = n, .k = 4096, .m = m}).tile].m;
  };
  EXPECT_EQ(rows(4096, 1), 8);
  EXPECT_EQ(rows(4096, 9), 16);
  EXPECT_EQ(rows(4096, 17), 16);  // 64 blocks of 32 rows are too few
  EXPECT_EQ(rows(8192, 17), 32);
  EXPECT_EQ(rows(4096, 64), 32);
  EXPECT_EQ(rows(28672, 64), 64);
  EXPECT_EQ(rows(4096, 4096), 64);
  EXPECT_EQ(rows(64, 16), 8);
}

TEST(LinearInt8WeightOnlyPlan, ReadsAsOneLine) {
  EXPECT_EQ(to_string(linear_int8_weight_only_plan({.n = 4096, .k = 4096, .m = 1})),
            "mma 32x8, depth 512, 4 stages, 128 blocks");
  EXPECT_EQ(to_string(linear_int8_weight_only_plan({.n = 64, .k = 100, .m = 1})), "simt row, 8 blocks");
  EXPECT_EQ(to_string(linear_int8_weight_only_plan({.n = 64, .k = 100, .m = 9})), "simt tile, 1 block");
  EXPECT_EQ(to_string(linear_int8_weight_only_plan(
                {.n = 64, .k = 64, .m = 1, .dtype = DType::Float16, .compute_capability = 75})),
            "mma (sm_75) 32x8, depth 512, 2 stages, 2 blocks");
}

}  // namespace
}  // namespace qbits
