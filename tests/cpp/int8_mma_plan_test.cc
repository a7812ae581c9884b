#include "ops/int8_mma_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "refusal.h"

namespace qbits {
namespace {

const Linear4bitTile& tile_of(const Int8MmaPlan& plan) {
  return *std::ranges::find(Int8Mma::kTiles, plan.columns, &Linear4bitTile::m);
}

TEST(Int8MmaPlan, EveryPlanCoversTheProblemAndFitsTheDevice) {
  for (const int cc : {75, 80, 86, 87, 89, 90, 100, 103, 120}) {
    const int limit = cc == 75                              ? 64
                      : cc == 80 || cc == 87                ? 163
                      : cc == 90 || (cc >= 100 && cc < 120) ? 227
                                                            : 99;  // KiB
    for (const int64_t n : {1, 100, 4096}) {
      for (const int64_t k : {0, 1, 100, 4096, 1 << 20}) {
        for (const int64_t m : {1, 16, 17, 300}) {
          const Int8MmaProblem problem{.batch = 3, .n = n, .k = k, .m = m, .compute_capability = cc};
          const std::vector<Int8MmaPlan> plans = int8_mma_plans(problem);
          EXPECT_EQ(std::ssize(plans), std::ssize(Int8Mma::kTiles) * (cc == 75 ? 1 : 2));
          const Int8MmaPlan used = int8_mma_plan("test", problem);
          EXPECT_EQ(used.isa, cc == 75 ? MmaIsa::Sm75 : MmaIsa::Sm80);
          EXPECT_EQ(std::ranges::count(plans, used), 1);
          for (const Int8MmaPlan& plan : plans) {
            const Linear4bitTile& tile = tile_of(plan);
            EXPECT_EQ(plan.tiles, 3 * ((n + tile.n - 1) / tile.n) * ((m + tile.m - 1) / tile.m)) << to_string(plan);
            EXPECT_GE(plan.stages, 2) << to_string(plan);
            EXPECT_LE(plan.stages, Int8Mma::kMaxStages) << to_string(plan);
            EXPECT_GE(plan.shared_bytes, plan.stages * Int8Mma::stage_bytes(tile)) << to_string(plan);
            EXPECT_GE(plan.shared_bytes, Int8Mma::finish_bytes(tile)) << to_string(plan);
            EXPECT_LE(plan.shared_bytes, limit * 1024) << to_string(plan);
          }
        }
      }
    }
  }
}

// Each fragment of sums is finished by one warp of those that share a tile's depth, and warps cover the tile.
TEST(Int8MmaPlan, TilesAreSharedOut) {
  for (const Linear4bitTile& t : Int8Mma::kTiles) {
    EXPECT_EQ(t.warps_m * t.warps_n * t.warps_k, 8) << t.m;
    EXPECT_EQ(t.warps_n * Int8Mma::kWarpRows, t.n) << t.m;
    EXPECT_EQ(t.warps_k * Int8Mma::kWarpDepth, t.k) << t.m;
    EXPECT_EQ(Int8Mma::fragments(t) * t.warps_m * t.warps_n * 16 * 8, t.m * t.n) << t.m;
    EXPECT_EQ(Int8Mma::finishers(t) * Int8Mma::own_fragments(t), Int8Mma::fragments(t)) << t.m;
    EXPECT_LE(Int8Mma::finishers(t), t.warps_k) << t.m;
  }
}

// Few rows of x take a narrow tile, many the widest; where tiles are few, narrower ones occupy more of the device.
TEST(Int8MmaPlan, TilesFollowTheProblem) {
  const auto columns = [](int64_t n, int64_t m) {
    return int8_mma_plan("test", {.n = n, .k = 4096, .m = m, .sm_count = 128}).columns;
  };
  EXPECT_EQ(columns(4096, 1), 8);
  EXPECT_EQ(columns(4096, 16), 16);
  EXPECT_EQ(columns(28672, 4096), 128);
  EXPECT_LT(columns(1024, 128), 128);
}

TEST(Int8MmaPlan, RefusesMoreTilesThanALaunchHas) {
  const Int8MmaProblem problem{.batch = int64_t{1} << 31, .n = 1, .k = 1, .m = 1};
  EXPECT_TRUE(int8_mma_plans(problem).empty());
  EXPECT_EQ(test::refusal(ErrorCode::Unsupported, [&] { int8_mma_plan("igemm", problem); }),
            "[igemm] size: got 2147483648 products of 1 x 1, want at most 2147483647 tiles of them");
}

TEST(Int8MmaPlan, Prints) {
  EXPECT_EQ(to_string(Int8MmaPlan{.columns = 64, .stages = 4, .shared_bytes = 98304}),
            "mma 128x64x128, 4 stages, 98304 B shared");
  EXPECT_EQ(to_string(Int8MmaPlan{.isa = MmaIsa::Sm75, .columns = 8, .stages = 2, .shared_bytes = 40960}),
            "mma of sm_75 32x8x512, 2 stages, 40960 B shared");
}

}  // namespace
}  // namespace qbits
