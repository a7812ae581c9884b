#include "ops/linear_4bit_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>

#include "qbits/error.h"
#include "qbits/linear.h"
#include "qbits/runtime.h"

namespace qbits {
namespace {

constexpr Linear4bitProblem kDecode = {.block_size = 64, .n = 4096, .k = 4096, .m = 1};
constexpr Linear4bitProblem kAmpere = {
    .block_size = 64, .n = 4096, .k = 4096, .m = 1, .compute_capability = 80, .sm_count = 108};

constexpr Linear4bitProblem kTuring = {
    .block_size = 64, .n = 4096, .k = 4096, .m = 1, .dtype = DType::Float16, .compute_capability = 75, .sm_count = 40};

Linear4bitProblem with_m(Linear4bitProblem p, int64_t m) {
  p.m = m;
  return p;
}

TEST(Linear4bitPlan, SmallestTileThatHoldsM) {
  const std::pair<int64_t, int> kExpected[] = {{1, 8},   {8, 8},   {9, 16},   {16, 16},   {17, 32},
                                               {33, 64}, {64, 64}, {65, 128}, {129, 128}, {100000, 128}};
  for (const auto& [m, tile] : kExpected) {
    const Linear4bitPlan plan = linear_4bit_plan(with_m(kAmpere, m));
    ASSERT_EQ(plan.kernel, Linear4bitKernel::Mma) << m;
    EXPECT_EQ(kLinear4bitTiles[plan.tile].m, tile) << m;
    EXPECT_EQ(plan.chunk, 64);
  }
}

TEST(Linear4bitPlan, ObstaclesLeadToFloat32KernelsAndAreNamed) {
  struct Obstacle {
    Linear4bitProblem problem;
    std::string reason;
  };
  const auto changed = [](auto change) {
    Linear4bitProblem p = kDecode;
    change(p);
    return p;
  };
  const Obstacle kObstacles[] = {
      {changed([](auto& p) { p.compute_capability = 70; }), "compute capability below 7.5"},
      {changed([](auto& p) { p.compute_capability = 75; }), "bfloat16 below compute capability 8.0"},
      {changed([](auto& p) { p.dtype = DType::Float32; }), "float32 activations"},
      {changed([](auto& p) { p.aligned = false; }), "pointers not on 16-byte boundaries"},
      {changed([](auto& p) { p.k = 4097; }), "K is no multiple of 32"},
      {changed([](auto& p) { p.k = 0; }), "empty weight"},
      {changed([](auto& p) { p.block_size = 16; }), "block size is no power of two from 32"},
      {changed([](auto& p) { p.block_size = 96; }), "block size is no power of two from 32"},
  };
  for (const Obstacle& o : kObstacles) {
    const Linear4bitPlan few = linear_4bit_plan(o.problem);
    EXPECT_EQ(few.kernel, Linear4bitKernel::SimtRow) << o.reason;
    EXPECT_EQ(few.reason, o.reason);
    EXPECT_EQ(few.workspace_bytes, 0);
    const Linear4bitPlan many = linear_4bit_plan(with_m(o.problem, 100));
    EXPECT_EQ(many.kernel, Linear4bitKernel::SimtTile) << o.reason;
    EXPECT_EQ(linear_4bit_plans(o.problem).size(), 2U) << o.reason;
  }
}

TEST(Linear4bitPlan, TuringMultipliesFloat16OnItsTensorCores) {
  for (const int64_t m : {1, 16, 17, 64, 100, 4096}) {
    for (const Coding coding : {Coding::Codebook, Coding::Affine}) {
      Linear4bitProblem p = with_m(kTuring, m);
      p.coding = coding;
      for (const Linear4bitPlan& plan : {linear_4bit_plan(p), linear_4bit_grad_x_plan(p)}) {
        EXPECT_EQ(plan.kernel, Linear4bitKernel::Mma) << to_string(plan);
        EXPECT_EQ(plan.isa, MmaIsa::Sm75) << to_string(plan);
      }
      EXPECT_EQ(linear_4bit_plan(p).chunk, coding == Coding::Affine && m > 64 ? 32 : 64) << m;
      for (const auto& plans : {linear_4bit_plans(p), linear_4bit_grad_x_plans(p)}) {
        for (const Linear4bitPlan& plan : plans) {
          EXPECT_TRUE(plan.kernel != Linear4bitKernel::Mma || plan.isa == MmaIsa::Sm75) << to_string(plan);
          EXPECT_TRUE(plan.kernel != Linear4bitKernel::Stream && plan.kernel != Linear4bitKernel::Wgmma);
        }
      }
    }
  }
}

TEST(Linear4bitPlan, LaterDevicesTestTheInstructionsOfTuringAndDoNotChooseThem) {
  const auto count = [](const std::vector<Linear4bitPlan>& plans, MmaIsa isa) {
    return std::ranges::count_if(
        plans, [&](const auto& plan) { return plan.kernel == Linear4bitKernel::Mma && plan.isa == isa; });
  };
  for (const int cc : {80, 86, 89, 90, 100, 120}) {
    for (const int64_t m : {1, 64, 4096}) {
      Linear4bitProblem p = with_m(kTuring, m);
      p.compute_capability = cc;
      EXPECT_EQ(linear_4bit_plan(p).isa, MmaIsa::Sm80) << cc;
      EXPECT_EQ(linear_4bit_grad_x_plan(p).isa, MmaIsa::Sm80) << cc;
      for (const bool grad_x : {false, true}) {
        const auto plans = [&] { return grad_x ? linear_4bit_grad_x_plans(p) : linear_4bit_plans(p); };
        p.dtype = DType::Float16;
        EXPECT_GE(count(plans(), MmaIsa::Sm75), grad_x ? 2 : 5) << cc;
        EXPECT_EQ(count(plans(), MmaIsa::Sm75), count(plans(), MmaIsa::Sm80)) << cc;
        p.dtype = DType::BFloat16;
        EXPECT_EQ(count(plans(), MmaIsa::Sm75), 0) << cc;
      }
    }
  }
}

TEST(Linear4bitPlan, EveryArchitectureReachesItsTensorCores) {
  for (const int cc : {75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121}) {
    for (const DType dtype : {DType::Float16, DType::BFloat16}) {
      for (const int64_t m : {1, 16, 17, 64, 4096}) {
        for (const Coding coding : {Coding::Codebook, Coding::Affine}) {
          for (const int64_t block : {32, 64, 4096}) {
            Linear4bitProblem p = with_m(kTuring, m);
            p.coding = coding;
            p.block_size = block;
            p.dtype = dtype;
            p.compute_capability = cc;
            const Linear4bitPlan forward = linear_4bit_plan(p);
            const Linear4bitPlan grad_x = linear_4bit_grad_x_plan(p);
            if (cc == 75 && dtype == DType::BFloat16) {
              EXPECT_EQ(forward.kernel, m <= 16 ? Linear4bitKernel::SimtRow : Linear4bitKernel::SimtTile);
              EXPECT_EQ(grad_x.kernel, Linear4bitKernel::SimtTile);
              continue;
            }
            const Linear4bitKernel hopper = cc == 90 ? Linear4bitKernel::Wgmma : Linear4bitKernel::Mma;
            const Linear4bitKernel few = cc >= 90 ? Linear4bitKernel::Stream : Linear4bitKernel::Mma;
            const bool either = cc == 90 && m == 16 && block >= 64 && forward.kernel == Linear4bitKernel::Wgmma;
            const Linear4bitKernel expected = m <= 16 && !either ? few : hopper;
            EXPECT_EQ(forward.kernel, expected) << cc << ": " << to_string(forward);
            const Linear4bitKernel ahead = cc == 90 && m == 4096 ? Linear4bitKernel::Ahead : hopper;
            EXPECT_EQ(grad_x.kernel, ahead) << cc << ": " << to_string(grad_x);
          }
        }
      }
    }
  }
}

TEST(Linear4bitPlan, ChunkFollowsBlocksAndRows) {
  Linear4bitProblem p = kAmpere;
  p.block_size = 32;
  EXPECT_EQ(linear_4bit_plan(p).chunk, 32);
  p.block_size = 128;
  p.k = 4096 + 32;  // blocks straddle rows
  EXPECT_EQ(linear_4bit_plan(p).chunk, 32);
  p.coding = Coding::Affine;  // groups do not
  EXPECT_EQ(linear_4bit_plan(p).chunk, 64);
  p.block_size = p.k;
  EXPECT_EQ(linear_4bit_plan(p).chunk, 64);
}

TEST(Linear4bitPlan, SplitsCoverTheDepthOnce) {
  for (const int64_t n : {8, 64, 1000, 4096, 28672}) {
    for (const int64_t k : {32, 96, 4096, 14336}) {
      for (const int64_t m : {1, 12, 30, 60, 500}) {
        const Linear4bitProblem p = {.block_size = 64, .n = n, .k = k, .m = m};
        for (const Linear4bitPlan& plan : linear_4bit_plans(p)) {
          if (plan.kernel != Linear4bitKernel::Mma) continue;
          const Linear4bitTile& tile = kLinear4bitTiles[plan.tile];
          EXPECT_EQ(plan.split_depth % tile.k, 0) << to_string(plan);
          EXPECT_GE(plan.splits * plan.split_depth, k) << to_string(plan);
          EXPECT_LT((plan.splits - 1) * plan.split_depth, k) << to_string(plan);
          EXPECT_EQ(plan.workspace_bytes, plan.splits > 1 ? plan.splits * m * n * 4 : 0) << to_string(plan);
          EXPECT_EQ(plan.blocks, (m + tile.m - 1) / tile.m * ((n + tile.n - 1) / tile.n) * plan.splits);
        }
      }
    }
  }
  Linear4bitProblem p = kAmpere;
  p.n = 1024;
  EXPECT_GT(linear_4bit_plan(p).splits, 1);
  p.n = 28672;
  EXPECT_EQ(linear_4bit_plan(p).splits, 1);
}

TEST(Linear4bitPlan, SharedMemoryFitsEveryDevice) {
  constexpr int kStatic = 2048;  // of the gradient's kernel
  const std::pair<int, int> kLimits[] = {{75, 64}, {80, 163}, {86, 99},   {87, 163},
                                         {89, 99}, {90, 227}, {100, 227}, {120, 99}};
  for (const auto& [cc, kilobytes] : kLimits) {
    for (const Coding coding : {Coding::Codebook, Coding::Affine}) {
      for (const int64_t block : {32, 64}) {
        Linear4bitProblem p = with_m(kTuring, 64);
        p.coding = coding;
        p.block_size = block;
        p.compute_capability = cc;
        for (const Linear4bitPlan& plan : linear_4bit_plans(p)) {
          EXPECT_LE(plan.shared_bytes, kilobytes * 1024) << "compute capability " << cc << ": " << to_string(plan);
          EXPECT_GE(plan.stages, plan.kernel == Linear4bitKernel::Mma ? 2 : 0) << to_string(plan);
          if (plan.kernel == Linear4bitKernel::Mma && plan.isa == MmaIsa::Sm75) {
            EXPECT_LE(plan.shared_bytes, 64 * 1024) << "compute capability " << cc << ": " << to_string(plan);
            EXPECT_EQ(plan.stages, 2) << to_string(plan);
          }
        }
        for (const Linear4bitPlan& plan : linear_4bit_grad_x_plans(p)) {
          EXPECT_LE(plan.shared_bytes + kStatic, kilobytes * 1024) << cc << ": " << to_string(plan);
        }
      }
    }
  }
}

TEST(Linear4bitPlan, ManyRowsGoToWgmmaOnHopperAlone) {
  for (const int64_t m : {17, 64, 129, 512}) {
    Linear4bitProblem p = with_m(kDecode, m);
    const Linear4bitPlan plan = linear_4bit_plan(p);
    EXPECT_EQ(plan.kernel, Linear4bitKernel::Wgmma) << to_string(plan);
    EXPECT_GE(plan.wgmma.columns * 2, std::min<int64_t>(m, 256)) << to_string(plan);
    p.compute_capability = 100;
    EXPECT_EQ(linear_4bit_plan(p).kernel, Linear4bitKernel::Mma);
  }
  EXPECT_GT(linear_4bit_plan(with_m(kDecode, 32)).splits, 1);  // 4096 rows are too few tiles
}

// What was measured on an H200 to be faster.
TEST(Linear4bitPlan, VeryManyRowsAreDequantizedForOnceOnHopper) {
  struct Cell {
    int64_t n, k, m;
    bool grad_x;
    Linear4bitKernel kernel;
  };
  constexpr Linear4bitKernel kWgmma = Linear4bitKernel::Wgmma;
  constexpr Linear4bitKernel kAhead = Linear4bitKernel::Ahead;
  constexpr Cell kCells[] = {
      {28672, 8192, 512, false, kWgmma},  {28672, 8192, 1024, false, kWgmma}, {28672, 8192, 4096, false, kWgmma},
      {4096, 4096, 1024, false, kWgmma},  {4096, 4096, 4096, false, kWgmma},  {14336, 4096, 4096, false, kWgmma},
      {4096, 14336, 1024, false, kWgmma}, {28672, 8192, 512, true, kWgmma},   {28672, 8192, 2048, true, kAhead},
      {4096, 4096, 512, true, kWgmma},    {4096, 4096, 2048, true, kWgmma},   {8192, 8192, 8192, true, kAhead},
      {4096, 28672, 4096, false, kAhead}};
  for (const Cell& cell : kCells) {
    Linear4bitProblem p = with_m(kDecode, cell.m);
    p.n = cell.n;
    p.k = cell.k;
    const Linear4bitPlan plan = cell.grad_x ? linear_4bit_grad_x_plan(p) : linear_4bit_plan(p);
    EXPECT_EQ(plan.kernel, cell.kernel) << cell.n << "x" << cell.k << ", m " << cell.m << ": " << to_string(plan);
    p.compute_capability = 100;
    EXPECT_EQ((cell.grad_x ? linear_4bit_grad_x_plan(p) : linear_4bit_plan(p)).kernel, Linear4bitKernel::Mma);
  }
}

TEST(Linear4bitPlan, OneMultiprocessorIsEnough) {
  for (const int64_t m : {1, 16, 17, 4096}) {
    Linear4bitProblem p = with_m(kDecode, m);
    p.sm_count = 1;
    for (const Linear4bitPlan& plan : {linear_4bit_plan(p), linear_4bit_grad_x_plan(p)}) {
      EXPECT_GE(plan.blocks, 1) << to_string(plan);
    }
    for (const Linear4bitPlan& plan : linear_4bit_plans(p)) EXPECT_GE(plan.blocks, 1) << to_string(plan);
    for (const Linear4bitPlan& plan : linear_4bit_grad_x_plans(p)) EXPECT_GE(plan.blocks, 1) << to_string(plan);
  }
}

TEST(Linear4bitPlan, GradX) {
  EXPECT_EQ(linear_4bit_grad_x_plan(with_m(kAmpere, 512)).kernel, Linear4bitKernel::Mma);
  EXPECT_EQ(linear_4bit_grad_x_plan(with_m(kAmpere, 512)).tile, 1);
  EXPECT_EQ(linear_4bit_grad_x_plan(with_m(kAmpere, 32)).tile, 0);
  EXPECT_EQ(linear_4bit_grad_x_plan(with_m(kDecode, 512)).kernel, Linear4bitKernel::Wgmma);
  Linear4bitProblem p = with_m(kDecode, 512);
  p.n = 4095;
  EXPECT_EQ(linear_4bit_grad_x_plan(p).reason, "N is no multiple of 8");
  EXPECT_EQ(linear_4bit_grad_x_plan(p).kernel, Linear4bitKernel::SimtTile);
  p.n = 0;
  EXPECT_EQ(linear_4bit_grad_x_plan(p).reason, "empty weight");
  p = with_m(kDecode, 512);
  p.block_size = 16;
  EXPECT_EQ(linear_4bit_grad_x_plan(p).kernel, Linear4bitKernel::Mma);
}

TEST(Linear4bitPlan, LargeSizesAndRefusals) {
  const Linear4bitPlan plan = linear_4bit_plan(
      {.block_size = 64, .n = int64_t{1} << 24, .k = 4096, .m = int64_t{1} << 20, .compute_capability = 80});
  EXPECT_EQ(plan.blocks, (int64_t{1} << 17) * (int64_t{1} << 13));
  EXPECT_THROW(linear_4bit_plan({.block_size = 64, .n = int64_t{1} << 34, .k = 4096, .m = int64_t{1} << 24}), Error);
  EXPECT_THROW(linear_4bit_plan({.block_size = 64, .n = 1, .k = 64, .m = 0}), Error);
  EXPECT_THROW(linear_4bit_plan({.block_size = 64, .n = 1, .k = 64, .m = 1, .dtype = DType::UInt8}), Error);
}

TEST(Linear4bitPlan, PrintsOneLine) {
  EXPECT_EQ(
      to_string(linear_4bit_plan({.block_size = 64, .n = 8192, .k = 8192, .m = 1})),
      "stream 8x16, 8 warps, chunk 64, 4 stages, 4 rounds, 200832 B shared, 132 blocks, 2 phases of 4096 (few rows)");
  EXPECT_EQ(to_string(linear_4bit_plan(kAmpere)),
            "mma 8x32x512, chunk 64, 6 stages, 138240 B shared, 128 blocks (smallest tile that holds m)");
  EXPECT_EQ(to_string(linear_4bit_plan(kTuring)),
            "mma of sm_75 8x32x512, chunk 64, 2 stages, 52224 B shared, 128 blocks (smallest tile that holds m)");
  Linear4bitProblem p = kDecode;
  p.dtype = DType::Float32;
  EXPECT_EQ(to_string(linear_4bit_plan(p)), "simt row, 512 blocks (float32 activations)");
}

TEST(Linear4bitPlan, PublicLineIsThatOfTheProblem) {
  for (const Format& f : formats()) {
    if (!f.is_4bit()) continue;
    for (const int64_t m : {1, 30, 500}) {
      const Linear4bitProblem p = {.coding = f.coding,
                                   .block_size = 64,
                                   .n = 4096,
                                   .k = 1024,
                                   .m = m,
                                   .packs = can_pack(f, DType::BFloat16, f.scale_dtypes.front())};
      EXPECT_EQ(linear_4bit_plan(f, 4096, 1024, 64, m, DType::BFloat16, CudaDevice{90, 132}),
                to_string(linear_4bit_plan(p)));
    }
  }
  const std::string rows = linear_4bit_plan(format("int4"), 64, 96, 0, 1, DType::Float16, CudaDevice{80, 108});
  EXPECT_EQ(rows, to_string(linear_4bit_plan({.coding = Coding::Affine,
                                              .block_size = 96,
                                              .n = 64,
                                              .k = 96,
                                              .m = 1,
                                              .dtype = DType::Float16,
                                              .compute_capability = 80,
                                              .sm_count = 108})));
}

TEST(Linear4bitPlan, PublicLineOnTheCpu) {
  const Format& nf4 = format("nf4");
  const int threads = num_threads();
  set_num_threads(4);
  const std::string cpu = "cpu " + isa();
  EXPECT_EQ(linear_4bit_plan(nf4, 4096, 4096, 64, 1, DType::Float32),
            cpu + ", few rows of x, 128 tiles 1x32, 4 threads");
  EXPECT_EQ(linear_4bit_plan(nf4, 576, 576, 64, 1, DType::Float32),
            cpu + ", few rows of x, 18 tiles 1x32, 4 threads if awake");
  EXPECT_EQ(linear_4bit_plan(nf4, 7, 33, 64, 1, DType::Float32),
            cpu + ", many rows of x, 1 tile 1x7, 1 thread (K is no multiple of 8)");
  EXPECT_EQ(linear_4bit_plan(nf4, 4096, 4096, 64, 200, DType::Float32),
            cpu + ", many rows of x, 256 tiles 100x32, 4 threads");
  EXPECT_EQ(linear_4bit_plan(nf4, 0, 64, 64, 1, DType::Float32), "nothing to do: the result is empty");
  EXPECT_EQ(linear_4bit_plan(nf4, 64, 64, 64, 0, DType::Float32), "nothing to do: the result is empty");
  EXPECT_THROW(linear_4bit_plan(format("int8"), 64, 64, 64, 1, DType::Float32), Error);
  EXPECT_THROW(linear_4bit_plan(nf4, 64, 64, 0, 1, DType::Float32), Error);
  EXPECT_THROW(linear_4bit_plan(nf4, -1, 64, 64, 1, DType::Float32), Error);
  EXPECT_THROW(linear_4bit_plan(nf4, int64_t{1} << 40, 64, 64, int64_t{1} << 40, DType::Float32), Error);
  EXPECT_THROW(linear_4bit_plan(nf4, 64, 64, 64, 1, DType::UInt8), Error);
  EXPECT_THROW(linear_4bit_plan(nf4, 64, 64, 64, 1, DType::Float32, CudaDevice{90, 0}), Error);
  EXPECT_THROW(linear_4bit_plan(nf4, 64, 64, 64, 1, DType::Float32, CudaDevice{70, 80}), Error);
  set_num_threads(threads);
}

}  // namespace
}  // namespace qbits
