#include "ops/linear_4bit_wgmma_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "ops/linear_4bit_plan.h"

namespace qbits {
namespace {

constexpr Linear4bitProblem kProblem = {.block_size = 64, .n = 4096, .k = 4096, .m = 256};

// Each unit of each tile belongs to one block, which leaves its sums of one tile at most, first of all, and adds those
// of others to one at most, last of all.
void ExpectEverythingOnce(const WgmmaSchedule& s) {
  const int tiles = s.m_tiles * s.row_tiles;
  ASSERT_LE(tiles - s.whole_tiles, 2 * s.blocks);
  std::vector<std::vector<int>> owners(tiles, std::vector<int>(s.units, -1));
  for (int block = 0; block < s.blocks; ++block) {
    bool first = true;
    bool over = false;
    for_each_segment(s, block, [&](const WgmmaSegment& segment) {
      EXPECT_FALSE(over);
      const bool is_first = std::exchange(first, false);
      ASSERT_LT(segment.first, segment.last);
      for (int unit = segment.first; unit < segment.last; ++unit) {
        EXPECT_EQ(owners.at(segment.tile).at(unit), -1);
        owners[segment.tile][unit] = block;
      }
      if (!s.is_shared(segment)) return;
      EXPECT_TRUE(!s.is_left(segment) || is_first);
      over = !s.is_left(segment);
    });
  }
  for (int block = 0; block < s.blocks; ++block) {
    for_each_segment(s, block, [&](const WgmmaSegment& segment) {
      if (!s.is_shared(segment)) return;
      EXPECT_EQ(s.is_left(segment), block < owners[segment.tile].back());
    });
  }
  std::set<std::pair<int, int>> positions;
  for (int tile = 0; tile < tiles; ++tile) {
    const WgmmaSchedule::Position at = s.position(tile);
    EXPECT_TRUE(at.m_tile < s.m_tiles && at.row_tile < s.row_tiles);
    EXPECT_TRUE(positions.emplace(at.m_tile, at.row_tile).second);
    for (const int owner : owners[tile]) EXPECT_GE(owner, 0);
    if (tile < s.whole_tiles) continue;
    EXPECT_EQ(owners[tile].front(), s.first_block(tile));
    for (int block = s.first_block(tile); block <= owners[tile].back(); ++block) {  // whom the last waits for
      EXPECT_TRUE(std::ranges::count(owners[tile], block) > 0) << "tile " << tile << ", block " << block;
    }
  }
}

TEST(Divisor, DividesAsTheOperatorsDo) {
  constexpr int kMost = std::numeric_limits<int>::max();
  for (const int by : {1, 2, 3, 7, 8, 132, 1023, 65536, 1 << 30, kMost - 1, kMost}) {
    for (const int n : {0, 1, 2, by - 1, by, by < kMost ? by + 1 : by, kMost / 2, kMost - 1, kMost}) {
      const Divisor::Result result = Divisor(by).divide(n);
      EXPECT_EQ(result.quotient, n / by) << n << " / " << by;
      EXPECT_EQ(result.rest, n % by) << n << " % " << by;
    }
  }
}

TEST(Linear4bitWgmmaPlan, SharesCoverTilesOnce) {
  for (const int blocks : {1, 2, 7, 132}) {
    for (const int units : {1, 2, 5, 32, 57}) {
      for (const int whole_waves : {0, 1, 3}) {
        for (const int shared : {0, 1, blocks / 2, blocks, 2 * blocks}) {
          if (whole_waves * blocks + shared == 0 || (shared > 0 && shared * units < blocks)) continue;
          const WgmmaSchedule schedule{.m_tiles = 1,
                                       .row_tiles = whole_waves * blocks + shared,
                                       .whole_tiles = whole_waves * blocks,
                                       .units = units,
                                       .blocks = blocks};
          ExpectEverythingOnce(schedule.with_divisors());
        }
      }
    }
  }
}

void ExpectCoversProblem(const WgmmaPlan& plan, const Linear4bitProblem& p, bool transposed, int64_t most_units) {
  const WgmmaSchedule schedule = linear_4bit_wgmma_schedule(plan, p.m, transposed ? p.k : p.n, transposed ? p.n : p.k);
  EXPECT_EQ(schedule.m_tiles * schedule.row_tiles * plan.sharers, plan.whole_tiles + plan.shared_tiles);
  EXPECT_EQ(plan.blocks % plan.sharers, 0);
  EXPECT_TRUE(plan.sharers == 1 ||
              (plan.sharers == 2 && plan.columns == 256 && plan.splits == 1 && plan.shared_tiles == 0));
  EXPECT_GT(plan.blocks, 0);
  EXPECT_EQ(plan.blocks % plan.splits, 0);
  EXPECT_EQ(plan.workspace_bytes > 0, plan.shared_tiles > 0 || plan.clusters > 1);
  EXPECT_TRUE(plan.splits == 1 || plan.blocks == plan.whole_tiles * plan.splits * plan.clusters);
  EXPECT_TRUE(plan.clusters == 1 || plan.splits == 2);
  if (plan.clusters > 1) {
    const int64_t finishers = std::min(plan.groups == 1 ? 4 : 2, plan.columns / 16);
    const int64_t counts = (plan.whole_tiles * plan.groups * finishers + 1) / 2 * 2;
    EXPECT_EQ(plan.workspace_bytes, counts * 8 + plan.whole_tiles * 2 * plan.columns * plan.groups * 64 * 4);
  }
  EXPECT_TRUE(plan.groups > 1 || plan.splits > 1);
  EXPECT_TRUE(plan.decode == WgmmaDecode::Weights || (!transposed && p.k % 64 == 0));
  const int64_t units = int64_t{schedule.m_tiles} * schedule.row_tiles * schedule.units;
  if (units <= most_units) ExpectEverythingOnce(schedule);
  // A launch's rows end with a tile where the next one's begin.
  EXPECT_LE(plan.rest.size(), 1u);
  for (const WgmmaPlan& rest : plan.rest) {
    EXPECT_TRUE(rest.rest.empty());
    EXPECT_GT(rest.first, plan.first);
    EXPECT_EQ((rest.first - plan.first) % (plan.groups * 64 * plan.sharers), 0);
    EXPECT_LT(rest.first, transposed ? p.k : p.n);
    ExpectCoversProblem(rest, p, transposed, most_units);
  }
}

TEST(Linear4bitWgmmaPlan, EveryOutputAndAllOfTheDepthAreCovered) {
  for (const Coding coding : {Coding::Codebook, Coding::Affine}) {
    for (const DType dtype : {DType::BFloat16, DType::Float16}) {
      const bool packs = dtype == DType::BFloat16;
      for (const int64_t n : {8, 1000, 4096, 28672}) {
        for (const int64_t k : {32, 96, 4096, 14336}) {
          for (const int64_t m : {1, 32, 33, 128, 1000, 8192}) {
            for (const bool transposed : {false, true}) {
              const Linear4bitProblem p = {
                  .coding = coding, .block_size = 64, .n = n, .k = k, .m = m, .dtype = dtype, .packs = packs};
              const WgmmaPlan best = linear_4bit_wgmma_plan(p, transposed);
              ASSERT_EQ(best.obstacle, "");
              ExpectCoversProblem(best, p, transposed, std::numeric_limits<int64_t>::max());
              const std::vector<WgmmaPlan> plans = linear_4bit_wgmma_plans(p, transposed);
              EXPECT_TRUE(std::ranges::find(plans, best) != plans.end());
              for (const WgmmaPlan& plan : plans) ExpectCoversProblem(plan, p, transposed, 20'000);
            }
          }
        }
      }
    }
  }
}

TEST(Linear4bitWgmmaPlan, TheFastestIsPlanned) {
  for (const int64_t m : {1, 64, 8192}) {
    Linear4bitProblem p = kProblem;
    p.m = m;
    const WgmmaPlan best = linear_4bit_wgmma_plan(p, false);
    for (const WgmmaPlan& plan : linear_4bit_wgmma_plans(p, false)) EXPECT_LE(best.time, plan.time);
  }
}

TEST(Linear4bitWgmmaPlan, AnyNumberOfMultiprocessors) {
  for (const int sm_count : {1, 2, 3, 5, 113}) {
    for (const int64_t n : {100, 1100, 4096}) {
      for (const int64_t m : {16, 300, 4096}) {
        for (const bool transposed : {false, true}) {
          const Linear4bitProblem p = {.block_size = 64, .n = n, .k = 1056, .m = m, .sm_count = sm_count};
          for (const WgmmaPlan& plan : linear_4bit_wgmma_plans(p, transposed)) {
            ExpectCoversProblem(plan, p, transposed, 20'000);
          }
        }
      }
    }
  }
}

TEST(Linear4bitWgmmaPlan, WideTilesOfWholeWavesShareX) {
  Linear4bitProblem p = {.block_size = 64, .n = 8192, .k = 8192};
  for (const int64_t m : {512, 1024, 4096}) {
    p.m = m;
    EXPECT_EQ(linear_4bit_wgmma_plan(p, false).sharers, 2) << m;
    EXPECT_EQ(linear_4bit_wgmma_plan(p, true).sharers, 2) << m;
  }
  p.m = 256;  // half a wave: blocks of a cluster share tiles
  EXPECT_EQ(linear_4bit_wgmma_plan(p, false).sharers, 1);
  p.n = 128;
  p.m = 4096;
  for (const WgmmaPlan& plan : linear_4bit_wgmma_plans(p, false)) EXPECT_EQ(plan.sharers, 1);  // one tile of rows
}

TEST(Linear4bitWgmmaPlan, SumsAreScaledWhereWeightsComeSlower) {
  Linear4bitProblem p = kProblem;
  p.n = 8192;
  p.k = 8192;
  p.m = 128;
  EXPECT_EQ(linear_4bit_wgmma_plan(p, false).decode, WgmmaDecode::Weights);
  p.dtype = DType::Float16;
  EXPECT_EQ(linear_4bit_wgmma_plan(p, false).decode, WgmmaDecode::Sums);
}

TEST(Linear4bitWgmmaPlan, WeightsOfManyRowsArePackedWhereTheyCanBe) {
  Linear4bitProblem p = {.block_size = 64, .n = 8192, .k = 8192, .packs = true};
  for (const Coding coding : {Coding::Codebook, Coding::Affine}) {
    p.coding = coding;
    for (const int64_t m : {128, 1024, 4096}) {
      p.m = m;
      EXPECT_EQ(linear_4bit_wgmma_plan(p, false).decode, WgmmaDecode::Packed) << m;
    }
  }
  const auto packs = [](const Linear4bitProblem& of, bool transposed) {
    const std::vector<WgmmaPlan> plans = linear_4bit_wgmma_plans(of, transposed);
    return std::ranges::any_of(plans, [](const WgmmaPlan& plan) { return plan.decode == WgmmaDecode::Packed; });
  };
  EXPECT_TRUE(packs(p, false));
  EXPECT_FALSE(packs(p, true));
  for (const auto change : std::initializer_list<void (*)(Linear4bitProblem&)>{
           [](auto& q) { q.packs = false; }, [](auto& q) { q.block_size = 32; }, [](auto& q) { q.k = 8224; }}) {
    Linear4bitProblem other = p;
    change(other);
    EXPECT_FALSE(packs(other, false));
  }
}

TEST(Linear4bitWgmmaPlan, ObstaclesAreNamed) {
  const auto obstacle = [](auto change, bool transposed = false) {
    Linear4bitProblem p = kProblem;
    change(p);
    return linear_4bit_wgmma_plan(p, transposed).obstacle;
  };
  EXPECT_EQ(obstacle([](auto& p) { p.compute_capability = 100; }), "compute capability is not 9.0");
  EXPECT_EQ(obstacle([](auto& p) { p.dtype = DType::Float32; }), "float32 activations");
  EXPECT_EQ(obstacle([](auto& p) { p.aligned = false; }), "pointers not on 16-byte boundaries");
  EXPECT_EQ(obstacle([](auto& p) { p.k = 4104; }), "K is no multiple of 32");
  EXPECT_EQ(obstacle([](auto& p) { p.block_size = 16; }), "block size is no power of two from 32");
  EXPECT_EQ(obstacle([](auto& p) { p.n = 4100; }, true), "N is no multiple of 8");
  EXPECT_EQ(obstacle([](auto& p) { p.n = 4100; }), "");
}

}  // namespace
}  // namespace qbits
