#include "ops/linear_4bit_stream_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "ops/ceil_div.h"

// The plans of the Stream kernel of linear_4bit, and when they are taken.

namespace qbits {
namespace {

constexpr Linear4bitProblem kDecode = {.block_size = 64, .n = 4096, .k = 4096, .m = 1};

TEST(Linear4bitStreamPlan, FewRowsFromHopperOn) {
  for (const int cc : {90, 100, 120}) {
    for (const int64_t m : {1, 8, 9, 16}) {
      Linear4bitProblem p = kDecode;
      p.m = m;
      p.compute_capability = cc;
      const Linear4bitPlan plan = linear_4bit_plan(p);
      EXPECT_EQ(plan.kernel, Linear4bitKernel::Stream) << to_string(plan);
      EXPECT_EQ(plan.column_tiles, m > 8 ? 2 : 1) << to_string(plan);
      EXPECT_EQ(plan.workspace_bytes, 0) << to_string(plan);
    }
  }
  Linear4bitProblem more = kDecode;
  more.m = 17;
  EXPECT_NE(linear_4bit_plan(more).kernel, Linear4bitKernel::Stream);
  Linear4bitProblem huge = kDecode;
  huge.n = int64_t{1} << 31;
  EXPECT_NE(linear_4bit_plan(huge).kernel, Linear4bitKernel::Stream);
}

// Within 2 % of the faster of an H200, by measured times; but products of a few dozen blocks, 2048x2048, were timed
// side by side.
TEST(Linear4bitStreamPlan, SixteenRowsTakeStreamOrWgmma) {
  struct Choice {
    int64_t n, k;
    bool stream, affine_stream;
  };
  constexpr Choice kChoices[] = {{28672, 8192, true, true},  {8192, 8192, true, true},    {14336, 4096, true, true},
                                 {6144, 4096, true, true},   {11008, 4096, true, true},   {4096, 14336, true, true},
                                 {2048, 8192, true, true},   {8192, 28672, true, false},  {4096, 11008, false, false},
                                 {5120, 5120, false, false}, {13824, 5120, false, false}, {2048, 2048, true, true}};
  for (const Choice& c : kChoices) {
    for (const Coding coding : {Coding::Codebook, Coding::Affine}) {
      const Linear4bitPlan plan = linear_4bit_plan({.coding = coding, .block_size = 64, .n = c.n, .k = c.k, .m = 16});
      const bool stream = coding == Coding::Affine ? c.affine_stream : c.stream;
      EXPECT_EQ(plan.kernel, stream ? Linear4bitKernel::Stream : Linear4bitKernel::Wgmma)
          << c.n << " x " << c.k << ": " << to_string(plan);
      EXPECT_EQ(plan.wgmma.columns, stream ? WgmmaPlan().columns : 16) << to_string(plan);
    }
  }
}

// Within 4 % of the fastest of an H200, by measured times. Up to 4 rows of x take most long rows in phases, few of
// affine formats, whose x must be put in order in each; else the blocks of a cluster share them.
TEST(Linear4bitStreamPlan, SplitsLongRows) {
  struct Shape {
    int splits, phases, warps;
  };
  struct Choice {
    int64_t n, k, m;
    Shape codebook, affine;
  };
  constexpr Choice kChoices[] = {{1024, 4096, 1, {1, 1, 8}, {1, 1, 8}},  {4096, 4096, 1, {1, 1, 8}, {1, 1, 8}},
                                 {11008, 4096, 1, {1, 1, 8}, {1, 1, 8}}, {3072, 3072, 1, {1, 1, 6}, {1, 1, 6}},
                                 {8192, 2048, 1, {1, 1, 8}, {1, 1, 8}},  {8192, 8192, 1, {1, 2, 8}, {2, 1, 8}},
                                 {13824, 8192, 1, {1, 2, 8}, {2, 1, 8}}, {28672, 8192, 1, {1, 2, 8}, {2, 1, 8}},
                                 {5120, 5120, 1, {2, 1, 5}, {2, 1, 5}},  {13824, 5120, 1, {1, 2, 5}, {2, 1, 5}},
                                 {4096, 14336, 1, {1, 4, 7}, {4, 1, 7}}, {4096, 11008, 1, {1, 3, 8}, {1, 3, 8}},
                                 {4096, 11008, 4, {1, 3, 8}, {1, 3, 8}}, {1024, 8192, 1, {1, 2, 8}, {2, 1, 8}},
                                 {2048, 8192, 1, {1, 2, 8}, {2, 1, 8}},  {4096, 8192, 1, {1, 2, 8}, {2, 1, 8}},
                                 {8192, 28672, 1, {1, 7, 8}, {8, 1, 7}}, {4096, 14336, 4, {4, 1, 7}, {4, 1, 7}},
                                 {4096, 11008, 8, {4, 1, 6}, {4, 1, 6}}, {8192, 8192, 8, {2, 1, 8}, {2, 1, 8}}};
  for (const Choice& c : kChoices) {
    for (const Coding coding : {Coding::Codebook, Coding::Affine}) {
      const Linear4bitPlan plan = linear_4bit_plan({.coding = coding, .block_size = 64, .n = c.n, .k = c.k, .m = c.m});
      const Shape& shape = coding == Coding::Affine ? c.affine : c.codebook;
      EXPECT_EQ(plan.splits, shape.splits) << c.n << " x " << c.k << ": " << to_string(plan);
      EXPECT_EQ(plan.phases, shape.phases) << c.n << " x " << c.k << ": " << to_string(plan);
      EXPECT_EQ(plan.warps, shape.warps) << c.n << " x " << c.k << ": " << to_string(plan);
      EXPECT_EQ(plan.parts, plan.warps) << c.n << " x " << c.k << ": " << to_string(plan);
    }
  }
}

// Each row and column is in one tile of one block, which the device can hold.
void expect_covers(const Linear4bitPlan& plan, int64_t n, int64_t k) {
  const int64_t tile_rows = 16 * plan.warps / plan.parts;
  const int64_t columns = plan.blocks / plan.splits;
  EXPECT_EQ(plan.blocks % plan.splits, 0) << to_string(plan);
  EXPECT_GE(plan.rounds * columns * tile_rows, n) << to_string(plan);
  EXPECT_LT((plan.rounds - 1) * columns * tile_rows, n) << to_string(plan);
  EXPECT_EQ(plan.split_depth % Linear4bitStream::kSlotDepth, 0) << to_string(plan);
  EXPECT_EQ(plan.parts, ceil_div(stream_slots(plan), stream_warp_slots(plan))) << to_string(plan);
  EXPECT_LE(stream_warp_slots(plan), 2) << to_string(plan);
  EXPECT_TRUE(plan.splits == 1 || plan.phases == 1) << to_string(plan);
  EXPECT_GE(plan.splits * plan.phases * plan.split_depth, k) << to_string(plan);
  EXPECT_LT((plan.splits * plan.phases - 1) * plan.split_depth, k) << to_string(plan);
  EXPECT_LE(plan.warps, Linear4bitStream::kMaxWarps) << to_string(plan);
  EXPECT_LE(plan.shared_bytes, 227 * 1024) << to_string(plan);
  EXPECT_GE(plan.stages, 2) << to_string(plan);
  if (plan.chunk == 64) {
    const int gaps = Linear4bitStream::scale_gaps(stream_slots(plan), plan.warps / plan.parts);
    EXPECT_LE(Linear4bitStream::sum_gaps(plan.column_tiles) + plan.stages * gaps, Linear4bitTable::kLines);
  }
}

TEST(Linear4bitStreamPlan, CoversEveryRowAndColumnOnce) {
  for (const Coding coding : {Coding::Codebook, Coding::Affine}) {
    for (const int64_t n : {1, 16, 17, 1000, 4096, 14336, 128256}) {
      for (const int64_t k : {32, 256, 288, 4096, 8192, 14336, 28672}) {
        for (const int64_t m : {1, 16}) {
          for (const int64_t block : {32, 64}) {
            for (const bool nested : {false, true}) {
              const Linear4bitProblem p = {
                  .coding = coding, .block_size = block, .n = n, .k = k, .m = m, .nested = nested};
              const std::vector<Linear4bitPlan> plans = linear_4bit_stream_plans(p);
              EXPECT_FALSE(plans.empty()) << n << " x " << k;
              for (const Linear4bitPlan& plan : plans) expect_covers(plan, n, k);
            }
          }
        }
      }
    }
  }
}

TEST(Linear4bitStreamPlan, PhasesOfLongRows) {
  const auto is_phased = [](const Linear4bitPlan& plan) { return plan.phases > 1; };
  for (const int64_t n : {40, 4096, 500000}) {
    for (const int64_t k : {4128, 8192, 40960, 131072}) {
      for (const int64_t m : {1, 4, 8}) {
        const Linear4bitProblem p = {.block_size = 32, .n = n, .k = k, .m = m};
        const std::vector<Linear4bitPlan> plans = linear_4bit_stream_plans(p);
        ASSERT_EQ(std::ranges::count_if(plans, is_phased), 1) << n << " x " << k;
        const Linear4bitPlan plan = *std::ranges::find_if(plans, is_phased);
        expect_covers(plan, n, k);
        EXPECT_EQ(plan.column_tiles, 1);
        EXPECT_EQ(stream_warp_slots(plan), 2);
        EXPECT_LE(plan.phases, Linear4bitStream::kMaxPhases);
        // Rows that are too long for a cluster have no other plan.
        if (k > 32768) {
          EXPECT_EQ(linear_4bit_plan(p).phases, plan.phases) << to_string(linear_4bit_plan(p));
        }
      }
    }
  }
  constexpr Linear4bitProblem kWithout[] = {{.block_size = 64, .n = 4096, .k = 8192, .m = 16},
                                            {.block_size = 64, .n = 4096, .k = 8192, .m = 4, .experts = 8},
                                            {.block_size = 64, .n = 4096, .k = 8192, .m = 1, .compute_capability = 100},
                                            {.block_size = 64, .n = 4096, .k = 4096, .m = 1}};
  for (const Linear4bitProblem& p : kWithout) {
    const std::vector<Linear4bitPlan> plans = linear_4bit_stream_plans(p);
    EXPECT_FALSE(plans.empty());
    EXPECT_TRUE(std::ranges::none_of(plans, is_phased));
  }
}

TEST(Linear4bitStreamPlan, FitsSmallerDevices) {
  for (const int64_t k : {2048, 4096, 8192, 14336}) {
    for (const int64_t m : {1, 16}) {
      for (const bool nested : {false, true}) {
        const Linear4bitProblem p = {
            .block_size = 64, .n = 4096, .k = k, .m = m, .nested = nested, .compute_capability = 120, .sm_count = 170};
        for (const Linear4bitPlan& plan : linear_4bit_stream_plans(p)) {
          EXPECT_LE(plan.shared_bytes, 99 * 1024) << to_string(plan);
          // Registers that only Hopper's warps share out.
          EXPECT_FALSE(Linear4bitStream::shares_registers(plan.column_tiles, stream_warp_slots(plan), plan.phases > 1));
        }
      }
    }
  }
}

}  // namespace
}  // namespace qbits
