#include "ops/linear_4bit_ahead_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "ops/linear_4bit_plan.h"

namespace qbits {
namespace {

constexpr Linear4bitProblem kProblem = {.block_size = 64, .n = 4096, .k = 4096, .m = 2048};

struct Sizes {
  int clusters, rows, steps, x_tiles, group;
};

constexpr Sizes kSizes[] = {{66, 112, 3, 4, 4}, {66, 16, 2, 2, 4},  {66, 32, 2, 5, 4}, {66, 57, 1, 33, 4},
                            {3, 3, 1, 1, 4},    {1, 2, 3, 3, 2},    {7, 5, 4, 6, 4},   {57, 33, 2, 16, 8},
                            {66, 1, 2, 200, 4}, {66, 40, 2, 11, 1}, {6, 2, 3, 3, 16}};

template <class F>
void for_waves(const AheadSchedule& schedule, F f) {
  for (AheadSchedule::Wave wave = schedule.first_wave();; wave = schedule.next_wave(wave)) {
    f(wave);
    if (schedule.is_last(wave)) return;
  }
}

TEST(Linear4bitAheadPlan, EveryTileIsTakenOnceAndItsWaveHasItsUnits) {
  for (const Sizes& s : kSizes) {
    const AheadSchedule schedule(s.clusters, s.rows, s.steps, s.x_tiles, s.group);
    std::vector<int> taken(static_cast<size_t>(s.rows) * s.x_tiles);
    int next_unit = 0;
    for_waves(schedule, [&](const AheadSchedule::Wave& wave) {
      EXPECT_EQ(wave.first_unit, next_unit);
      EXPECT_LE(wave.lines, schedule.max_lines());
      next_unit += wave.lines * s.steps;
      for (int i = wave.first_tile; i < std::min(wave.first_tile + s.clusters, schedule.tiles); ++i) {
        const AheadSchedule::Tile tile = schedule.tile(i);
        ASSERT_TRUE(tile.row >= 0 && tile.row < s.rows && tile.x >= 0 && tile.x < s.x_tiles);
        EXPECT_EQ(tile.line % s.rows, tile.row);
        EXPECT_TRUE(tile.line >= wave.first_line && tile.line < wave.first_line + wave.lines);
        EXPECT_GE(schedule.unit(wave, 0, tile.line), wave.first_unit);
        EXPECT_LT(schedule.unit(wave, s.steps - 1, tile.line), next_unit);
        ++taken[tile.row * s.x_tiles + tile.x];
      }
    });
    EXPECT_EQ(std::ranges::count(taken, 1), static_cast<int64_t>(taken.size()));
  }
}

// The kernel's protocol, its threads taking turns at random: units are dequantized in their order, one only when no
// cluster still reads the one it replaces; clusters load in theirs, and tell when what they loaded has been read.
TEST(Linear4bitAheadPlan, ARingOfAnyPlanNeitherBlocksNorOverwrites) {
  constexpr int kStages = 6;  // of the loader
  std::mt19937 random(1);
  for (const Sizes& s : kSizes) {
    const AheadSchedule schedule(s.clusters, s.rows, s.steps, s.x_tiles, s.group);
    const int ring = schedule.max_lines() * Ahead::kLeastSteps;
    std::vector<std::vector<int>> reads(s.clusters);  // units, a stage each
    int units = 0;
    for_waves(schedule, [&](const AheadSchedule::Wave& wave) {
      units = wave.first_unit + wave.lines * s.steps;
      for (int i = 0; i < s.clusters && wave.first_tile + i < schedule.tiles; ++i) {
        const int line = schedule.tile(wave.first_tile + i).line;
        for (int stage = 0; stage < s.steps * Ahead::kUnitStages; ++stage) {
          reads[i].push_back(schedule.unit(wave, stage / Ahead::kUnitStages, line));
        }
      }
    });
    std::vector<size_t> loaded(s.clusters);
    const auto progress = [&](int cluster) {
      const size_t count = loaded[cluster];
      if (count == reads[cluster].size()) return std::numeric_limits<int>::max();
      return count < kStages ? 0 : reads[cluster][count - kStages + 1];
    };
    int decoded = 0;
    for (;;) {
      // Whoever can move: a cluster, or -1 for the dequantizing warps.
      std::vector<int> ready;
      int least = std::numeric_limits<int>::max();
      for (int i = 0; i < s.clusters; ++i) {
        least = std::min(least, progress(i));
        if (loaded[i] < reads[i].size() && reads[i][loaded[i]] < decoded) ready.push_back(i);
      }
      if (decoded < units && least >= decoded - ring + 1) ready.push_back(-1);
      if (ready.empty()) break;
      const int mover = ready[random() % ready.size()];
      if (mover < 0) {
        ++decoded;
      } else {
        ASSERT_LE(decoded, reads[mover][loaded[mover]] + ring) << "an overwritten unit is read";
        ++loaded[mover];
      }
    }
    EXPECT_EQ(decoded, units);
    for (int i = 0; i < s.clusters; ++i) EXPECT_EQ(loaded[i], reads[i].size()) << "cluster " << i << " is stuck";
  }
}

TEST(Linear4bitAheadPlan, PlansFitTheirProblem) {
  for (const int64_t n : {8, 1000, 4096, 28672}) {
    for (const int64_t k : {32, 96, 4096, 14336}) {
      for (const int64_t m : {1, 129, 1000, 8192, 100000}) {
        for (const bool transposed : {false, true}) {
          const Linear4bitProblem p = {.block_size = 64, .n = n, .k = k, .m = m};
          for (const AheadPlan& plan : linear_4bit_ahead_plans(p, transposed)) {
            EXPECT_EQ(plan.obstacle, "");
            EXPECT_TRUE(plan.columns == 128 || plan.columns == 256);
            EXPECT_GT(plan.blocks, 0);
            EXPECT_LE(plan.blocks, p.sm_count);
            EXPECT_EQ(plan.blocks % Ahead::kBlocks, 0);
            EXPECT_GE(plan.workspace_bytes, int64_t{plan.units} * Ahead::kUnitBytes);
            EXPECT_LE(plan.workspace_bytes, int64_t{40} << 20) << "N " << n << ", K " << k << ", M " << m;
          }
        }
      }
    }
  }
}

TEST(Linear4bitAheadPlan, ObstaclesAreNamed) {
  const auto obstacle = [](auto change, bool transposed = false) {
    Linear4bitProblem p = kProblem;
    change(p);
    return linear_4bit_ahead_plan(p, transposed).obstacle;
  };
  EXPECT_EQ(obstacle([](auto& p) { p.compute_capability = 100; }), "compute capability is not 9.0");
  EXPECT_EQ(obstacle([](auto& p) { p.dtype = DType::Float32; }), "float32 activations");
  EXPECT_EQ(obstacle([](auto& p) { p.aligned = false; }), "pointers not on 16-byte boundaries");
  EXPECT_EQ(obstacle([](auto& p) { p.k = 4104; }), "K is no multiple of 32");
  EXPECT_EQ(obstacle([](auto& p) { p.block_size = 16; }), "block size is no power of two from 32");
  EXPECT_EQ(obstacle([](auto& p) { p.sm_count = 1; }), "fewer than two multiprocessors");
  EXPECT_EQ(obstacle([](auto& p) { p.m = int64_t{1} << 27; }), "sizes past 2^26");
  EXPECT_EQ(obstacle([](auto& p) { p.m = p.k = p.n = int64_t{1} << 26; }), "2^31 units or more");
  EXPECT_EQ(obstacle([](auto& p) { p.n = 4100; }, true), "N is no multiple of 8");
  EXPECT_EQ(obstacle([](auto& p) { p.n = 4100; }), "");
}

}  // namespace
}  // namespace qbits
