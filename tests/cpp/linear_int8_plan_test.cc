#include "ops/linear_int8_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <initializer_list>
#include <iterator>

namespace qbits {
namespace {

using Wgmma = LinearInt8Wgmma;

TEST(LinearInt8Plan, EveryPlanCoversTheProblem) {
  for (const int64_t n : {1, 100, 4096, 28672}) {
    for (const int64_t k : {0, 1, 16, 100, 512, 4096, 8192, 1 << 17, (1 << 17) + 16}) {
      for (const int64_t m : {1, 16, 17, 300, 4096}) {
        const LinearInt8Problem problem{.n = n, .k = k, .m = m};
        const std::vector<LinearInt8Plan> plans = linear_int8_plans(problem);
        EXPECT_EQ(std::ranges::count(plans, linear_int8_plan(problem)), 1);
        for (const LinearInt8Plan& plan : plans) {
          const bool wgmma = plan.kernel == LinearInt8Kernel::Wgmma;
          if (plan.kernel == LinearInt8Kernel::Mma) {
            EXPECT_EQ(plan.blocks, plan.mma.tiles) << to_string(plan);
            EXPECT_EQ(plan.columns, plan.mma.columns) << to_string(plan);
            continue;
          }
          const int64_t rows = wgmma ? plan.rows : 64;
          EXPECT_EQ(plan.tiles, (n + rows - 1) / rows * ((m + plan.columns - 1) / plan.columns)) << to_string(plan);
          const bool once = !wgmma || plan.splits > 1 || !Wgmma::goes_on(plan.rows, plan.columns, plan.lists);
          EXPECT_EQ(plan.blocks, once ? plan.tiles * plan.splits : std::min<int64_t>(plan.tiles, problem.sm_count))
              << to_string(plan);
          if (!wgmma) continue;
          EXPECT_LE(plan.splits * int64_t{Wgmma::kDepth}, k + Wgmma::kDepth - 1) << to_string(plan);
          if (plan.rows == Wgmma::kFewRows) {
            EXPECT_LE(m, Wgmma::kMostFew) << to_string(plan);
            EXPECT_EQ(plan.splits, 1) << to_string(plan);
          }
          EXPECT_FALSE(plan.lists) << to_string(plan);
        }
      }
    }
  }
}

// The copies of wgmma's operands begin at 16 bytes; mma.sync takes what else has sums of 32 bits.
TEST(LinearInt8Plan, WgmmaAndMmaOnlyWhereTheyCan) {
  const LinearInt8Problem good{.n = 4096, .k = 4096, .m = 64};
  EXPECT_EQ(linear_int8_plan(good).kernel, LinearInt8Kernel::Wgmma);
  using enum LinearInt8Kernel;
  struct Change {
    LinearInt8Kernel kernel;
    void (*make)(LinearInt8Problem&);
  };
  for (const auto& [kernel, make] :
       std::initializer_list<Change>{{Mma, [](LinearInt8Problem& p) { p.aligned = false; }},
                                     {Mma, [](LinearInt8Problem& p) { p.k = 4100; }},
                                     {Mma, [](LinearInt8Problem& p) { p.k = 4097; }},
                                     {Mma, [](LinearInt8Problem& p) { p.k = 0; }},
                                     {Mma, [](LinearInt8Problem& p) { p.compute_capability = 75; }},
                                     {Mma, [](LinearInt8Problem& p) { p.compute_capability = 80; }},
                                     {Mma, [](LinearInt8Problem& p) { p.compute_capability = 120; }},
                                     {Simt, [](LinearInt8Problem& p) { p.k = (1 << 17) + 16; }},
                                     {Simt, [](LinearInt8Problem& p) { p.compute_capability = 70; }}}) {
    LinearInt8Problem problem = good;
    make(problem);
    EXPECT_EQ(linear_int8_plan(problem).kernel, kernel) << to_string(linear_int8_plan(problem));
  }
}

// Tests can force mma.sync, by both sets of instructions, where it is not chosen.
TEST(LinearInt8Plan, PlansHoldBothVariantsOfMma) {
  for (const int cc : {75, 80, 90, 120}) {
    int counts[2] = {};
    for (const LinearInt8Plan& plan : linear_int8_plans({.n = 64, .k = 64, .m = 4, .compute_capability = cc})) {
      if (plan.kernel == LinearInt8Kernel::Mma) ++counts[static_cast<int>(plan.mma.isa)];
    }
    EXPECT_EQ(counts[0], std::ssize(Int8Mma::kTiles));
    EXPECT_EQ(counts[1], cc == 75 ? 0 : std::ssize(Int8Mma::kTiles));
  }
}

// Few rows of x take the narrowest tile that holds them, many the widest; a small weight is shared out.
TEST(LinearInt8Plan, TilesFollowTheProblem) {
  EXPECT_EQ(linear_int8_plan({.n = 28672, .k = 8192, .m = 1}).columns, 16);
  EXPECT_EQ(linear_int8_plan({.n = 28672, .k = 8192, .m = 4096}).columns, 256);
  EXPECT_EQ(linear_int8_plan({.n = 28672, .k = 8192, .m = 4096}).splits, 1);
  EXPECT_GT(linear_int8_plan({.n = 1024, .k = 16384, .m = 8}).splits, 1);
  for (const int64_t m : {1, 16, 32, 64, 128, 256}) {
    for (const LinearInt8Plan& plan : linear_int8_plans({.n = 4096, .k = 4096, .m = m})) {
      if (plan.kernel != LinearInt8Kernel::Wgmma) continue;
      EXPECT_LE(plan.columns, std::max<int64_t>(m, 16)) << to_string(plan);
    }
  }
}

// Tiles of 64 weight rows where those of 128 would leave multiprocessors idle and rows of x are few.
TEST(LinearInt8Plan, TilesOfFewRows) {
  for (const bool outliers : {false, true}) {
    const LinearInt8Problem few{.n = 4096, .k = 4096, .m = 16, .outliers = outliers};
    EXPECT_EQ(linear_int8_plan(few).rows, Wgmma::kFewRows);
    EXPECT_EQ(linear_int8_plan({.n = 28672, .k = 8192, .m = 16, .outliers = outliers}).rows, Wgmma::kRows);
    EXPECT_EQ(linear_int8_plan({.n = 11008, .k = 4096, .m = 1, .outliers = outliers}).rows, Wgmma::kRows);
    for (auto make :
         {+[](LinearInt8Problem& p) { p.m = 129; }, +[](LinearInt8Problem& p) { p.dtype = DType::Float32; }}) {
      LinearInt8Problem other = few;
      make(other);
      for (const LinearInt8Plan& plan : linear_int8_plans(other)) EXPECT_NE(plan.rows, Wgmma::kFewRows);
    }
  }
}

// Blocks list outlier columns where rows of x are few, a bit for each column finds room, and a word can be copied from
// x.
TEST(LinearInt8Plan, BlocksListOutliers) {
  const LinearInt8Problem good{.n = 4096, .k = 4096, .m = 16, .outliers = true};
  EXPECT_TRUE(linear_int8_plan(good).lists);
  EXPECT_TRUE(linear_int8_plan({.n = 4096, .k = 4096, .m = 256, .outliers = true}).lists);
  EXPECT_FALSE(linear_int8_plan({.n = 28672, .k = 8192, .m = 16, .outliers = true}).lists);
  for (auto make :
       {+[](LinearInt8Problem& p) { p.m = 513; }, +[](LinearInt8Problem& p) { p.k = 32768 + 16; },
        +[](LinearInt8Problem& p) { p.dtype = DType::Float32; }, +[](LinearInt8Problem& p) { p.x_aligned = false; },
        +[](LinearInt8Problem& p) { p.outliers = false; }}) {
    LinearInt8Problem other = good;
    make(other);
    for (const LinearInt8Plan& plan : linear_int8_plans(other)) EXPECT_FALSE(plan.lists);
  }
}

TEST(LinearInt8Plan, Prints) {
  EXPECT_EQ(to_string(LinearInt8Plan{
                .kernel = LinearInt8Kernel::Wgmma, .rows = 128, .columns = 64, .splits = 2, .blocks = 128}),
            "wgmma 128x64, 2 splits, 128 blocks");
  EXPECT_EQ(to_string(LinearInt8Plan{
                .kernel = LinearInt8Kernel::Wgmma, .rows = 64, .columns = 16, .lists = true, .blocks = 64}),
            "wgmma 64x16, 1 split, 64 blocks, lists outliers");
  EXPECT_EQ(to_string(LinearInt8Plan{.blocks = 1}), "simt 64x64, 1 block");
  EXPECT_EQ(
      to_string(LinearInt8Plan{
          .kernel = LinearInt8Kernel::Mma, .blocks = 32, .mma = {.columns = 128, .stages = 5, .shared_bytes = 81920}}),
      "mma 128x128x64, 5 stages, 81920 B shared, 32 blocks");
}

}  // namespace
}  // namespace qbits
