#include "ops/grouped_linear_4bit_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "ops/ceil_div.h"
#include "qbits/error.h"
#include "qbits/linear.h"

namespace qbits {
namespace {

constexpr Linear4bitProblem kHopper = {.block_size = 64, .n = 14336, .k = 4096, .m = 8, .experts = 8};

Linear4bitProblem with_m(Linear4bitProblem p, int64_t m) {
  p.m = m;
  return p;
}

TEST(GroupedLinear4bitPlan, NoOffsetsHaveMorePiecesThanThePlanHolds) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    const int64_t experts = 1 + random() % 9;
    const int64_t m = 1 + random() % 40;
    const int64_t columns = 1 << random() % 5;
    std::vector<int64_t> rows(experts);
    for (int64_t t = 0; t < m; ++t) ++rows[random() % experts];
    int64_t pieces = 0;
    for (const int64_t r : rows) pieces += ceil_div(r, columns);
    EXPECT_LE(pieces, max_pieces(with_m({.experts = experts}, m), columns))
        << experts << " experts, " << m << " rows, " << columns << " columns";
  }
  EXPECT_EQ(max_pieces(with_m({.experts = 8}, 8), 16), 8);     // one row an expert
  EXPECT_EQ(max_pieces(with_m({.experts = 8}, 24), 16), 9);    // 17 rows of one, 1 of the others
  EXPECT_EQ(max_pieces(with_m({.experts = 0}, 33), 16), 3);    // no experts: as rows are cut
  EXPECT_EQ(likely_pieces(with_m({.experts = 8}, 2), 16), 2);  // as many experts as rows
  EXPECT_EQ(likely_pieces(with_m({.experts = 8}, 136), 16), 16);
}

TEST(GroupedLinear4bitPlan, FewRowsAnExpertStreamAndMoreUseTiles) {
  for (const int64_t m : {1, 2, 8, 32, 64, 65, 128}) {
    EXPECT_EQ(grouped_linear_4bit_plan(with_m(kHopper, m)).kernel, Linear4bitKernel::Stream) << m;
  }
  for (const int64_t m : {129, 512, 2048, 100000}) {
    EXPECT_EQ(grouped_linear_4bit_plan(with_m(kHopper, m)).kernel, Linear4bitKernel::Wgmma) << m;
  }
}

TEST(GroupedLinear4bitPlan, SmallExpertsAndShortRowsUseTilesFromNineRowsOn) {
  for (const auto& [n, k] : {std::pair{4096, 4096}, {14336, 3072}, {1536, 2048}}) {
    Linear4bitProblem p = kHopper;
    p.n = n;
    p.k = k;
    EXPECT_EQ(grouped_linear_4bit_plan(with_m(p, 64)).kernel, Linear4bitKernel::Stream);
    for (const int64_t m : {65, 128}) {
      const Linear4bitPlan plan = grouped_linear_4bit_plan(with_m(p, m));
      EXPECT_EQ(plan.kernel, Linear4bitKernel::Wgmma) << n << "x" << k << ", " << m;
      EXPECT_EQ(plan.wgmma.columns, 16);
    }
  }
}

TEST(GroupedLinear4bitPlan, PiecesHoldTwiceTheLikelyRows) {
  EXPECT_EQ(grouped_linear_4bit_plan(with_m(kHopper, 32)).column_tiles, 1);
  EXPECT_EQ(grouped_linear_4bit_plan(with_m(kHopper, 33)).column_tiles, 2);
}

TEST(GroupedLinear4bitPlan, LongRowsStreamForFewRowsOnly) {
  Linear4bitProblem p = kHopper;
  p.n = 4096;
  p.k = 14336;
  EXPECT_EQ(grouped_linear_4bit_plan(with_m(p, 32)).kernel, Linear4bitKernel::Stream);
  EXPECT_EQ(grouped_linear_4bit_plan(with_m(p, 64)).kernel, Linear4bitKernel::Wgmma);
}

TEST(GroupedLinear4bitPlan, RoundsHoldAnyOffsetsAndFitTheDevice) {
  for (const int64_t k : {2048, 4096, 14336}) {
    for (const int64_t m : {1, 7, 64, 1000}) {
      Linear4bitProblem p = with_m(kHopper, m);
      p.k = k;
      for (const Linear4bitPlan& plan : grouped_linear_4bit_plans(p)) {
        if (plan.kernel != Linear4bitKernel::Stream) continue;
        const int64_t tiles = ceil_div(p.n, 16 * plan.warps / plan.parts) * max_pieces(p, 8 * plan.column_tiles);
        EXPECT_GE(plan.rounds * (plan.blocks / plan.splits), tiles) << to_string(plan);
        EXPECT_LE(plan.shared_bytes, 227 * 1024) << to_string(plan);
      }
    }
  }
}

TEST(GroupedLinear4bitPlan, TilesOfOneExpertShareNothingWithOthers) {
  for (const bool grad_x : {false, true}) {
    const Linear4bitProblem p = with_m(kHopper, 4096);
    const auto plans = grad_x ? grouped_linear_4bit_grad_x_plans(p) : grouped_linear_4bit_plans(p);
    EXPECT_TRUE(std::ranges::any_of(plans, [](const auto& q) { return q.kernel == Linear4bitKernel::Wgmma; }));
    for (const Linear4bitPlan& plan : plans) {
      EXPECT_EQ(plan.workspace_bytes, 0) << to_string(plan);
      if (plan.kernel != Linear4bitKernel::Wgmma) continue;
      EXPECT_EQ(plan.wgmma.shared_tiles, 0) << to_string(plan);
      EXPECT_EQ(plan.splits, 1) << to_string(plan);
      EXPECT_LE(plan.blocks, p.sm_count) << to_string(plan);
    }
  }
}

TEST(GroupedLinear4bitPlan, ObstaclesLeadToFloat32KernelsAndAreNamed) {
  const auto expect_simt = [](Linear4bitProblem p, const std::string& reason) {
    EXPECT_EQ(grouped_linear_4bit_plan(p).kernel, Linear4bitKernel::SimtRow) << reason;
    EXPECT_EQ(grouped_linear_4bit_plan(p).reason, reason);
    p.m = 4000;
    EXPECT_EQ(grouped_linear_4bit_plan(p).kernel, Linear4bitKernel::SimtTile) << reason;
    EXPECT_EQ(grouped_linear_4bit_grad_x_plan(p).kernel, Linear4bitKernel::SimtTile) << reason;
    for (const Linear4bitPlan& plan : grouped_linear_4bit_plans(p)) EXPECT_LT(plan.kernel, Linear4bitKernel::Mma);
  };
  Linear4bitProblem p = kHopper;
  p.k = 4097;
  expect_simt(p, "K is no multiple of 32");
  p = kHopper;
  p.dtype = DType::Float32;
  expect_simt(p, "float32 activations");
  p = kHopper;
  p.compute_capability = 75;
  expect_simt(p, "bfloat16 below compute capability 8.0");
}

TEST(GroupedLinear4bitPlan, OtherDevicesUseSmallTiles) {
  Linear4bitProblem p = kHopper;
  p.compute_capability = 80;
  for (const auto& [m, tile] : {std::pair{64, 8}, {65, 16}, {500, 64}, {4000, 128}}) {
    const Linear4bitPlan plan = grouped_linear_4bit_plan(with_m(p, m));
    ASSERT_EQ(plan.kernel, Linear4bitKernel::Mma) << m;
    EXPECT_EQ(kLinear4bitTiles[plan.tile].m, tile) << m;
    EXPECT_EQ(plan.splits, 1);
    EXPECT_EQ(plan.blocks, max_pieces(with_m(p, m), tile) * ceil_div(p.n, kLinear4bitTiles[plan.tile].n));
    EXPECT_EQ(grouped_linear_4bit_grad_x_plan(with_m(p, m)).kernel, Linear4bitKernel::Mma) << m;
  }
  p.compute_capability = 100;
  EXPECT_EQ(grouped_linear_4bit_plan(with_m(p, 64)).kernel, Linear4bitKernel::Stream);
  EXPECT_EQ(grouped_linear_4bit_plan(with_m(p, 500)).kernel, Linear4bitKernel::Mma);
  // A weight of all experts that Hopper's kernels cannot count.
  p = with_m(kHopper, 4000);
  p.experts = 1 << 20;
  EXPECT_EQ(grouped_linear_4bit_plan(p).kernel, Linear4bitKernel::Mma);
}

TEST(GroupedLinear4bitPlan, RefusesWhatNoKernelCovers) {
  EXPECT_THROW(grouped_linear_4bit_plan(with_m(kHopper, 0)), Error);
  Linear4bitProblem p = kHopper;
  p.experts = 0;
  EXPECT_THROW(grouped_linear_4bit_plan(p), Error);
  EXPECT_THROW(grouped_linear_4bit_grad_x_plan(p), Error);
}

TEST(GroupedLinear4bitPlan, Public) {
  const Format& nf4 = format("nf4");
  const CudaDevice hopper = {.compute_capability = 90, .sm_count = 132};
  const auto plan = [&](int64_t experts, int64_t m, const std::optional<CudaDevice>& device) {
    return grouped_linear_4bit_plan(nf4, experts, 14336, 4096, 64, m, DType::BFloat16, device);
  };
  EXPECT_EQ(plan(8, 8, hopper).substr(0, 6), "stream");
  EXPECT_EQ(plan(8, 4096, hopper).substr(0, 5), "wgmma");
  EXPECT_TRUE(plan(8, 8, std::nullopt).starts_with("8 experts in turn, at most with all rows of x: cpu "));
  EXPECT_EQ(plan(8, 0, hopper), "nothing to do: the result is empty");
  EXPECT_THROW(plan(0, 8, hopper), Error);
  EXPECT_THROW(plan(8, -1, hopper), Error);
  EXPECT_THROW(plan(8, 8, CudaDevice{.compute_capability = 70, .sm_count = 1}), Error);
}

}  // namespace
}  // namespace qbits
