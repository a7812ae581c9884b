#include "ops/linear_4bit_wgmma_plan.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "ops/codebook_fit.h"
#include "ops/linear_4bit_plan.h"

namespace qbits {
namespace {

constexpr Linear4bitProblem kProblem = {.block_size = 64, .n = 4096, .k = 4096, .m = 256};

TEST(Linear4bitWgmmaPlan, EveryOutputAndAllOfTheDepthAreCovered) {
  for (const Coding coding : {Coding::Codebook, Coding::Affine}) {
    for (const DType dtype : {DType::BFloat16, DType::Float16}) {
      for (const int64_t n : {8, 1000, 4096, 28672}) {
        for (const int64_t k : {32, 96, 4096, 14336}) {
          for (const int64_t m : {1, 32, 33, 128, 1000, 8192}) {
            for (const bool transposed : {false, true}) {
              const Linear4bitProblem p = {.coding = coding, .block_size = 64, .n = n, .k = k, .m = m, .dtype = dtype};
              const WgmmaPlan plan = linear_4bit_wgmma_plan(p, transposed);
              ASSERT_EQ(plan.obstacle, "");
              const int64_t depth = transposed ? n : k;
              EXPECT_EQ(plan.split_depth % 256, 0);
              EXPECT_GE(plan.splits * plan.split_depth, depth);
              EXPECT_LT((plan.splits - 1) * plan.split_depth, depth) << "an idle split";
              EXPECT_EQ(plan.columns % (plan.splits * plan.multicast), 0);
              EXPECT_LE(plan.splits * plan.multicast, 8);
              EXPECT_GT(plan.blocks, 0);
              EXPECT_EQ(plan.blocks % (plan.splits * plan.multicast), 0);
              // Blocks of a split tile take no second one.
              const int64_t rows = plan.groups * 64;
              const int64_t tiles = ((transposed ? k : n) + rows - 1) / rows * ((m + plan.columns - 1) / plan.columns);
              EXPECT_TRUE(plan.splits == 1 || plan.blocks == tiles * plan.splits);
              if (plan.decode == WgmmaDecode::Sums) {
                EXPECT_TRUE(coding == Coding::Codebook && !transposed && k % 64 == 0);
              }
            }
          }
        }
      }
    }
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

TEST(CodebookFit, ShiftedValuesAreFractionsThatErrFarLessThanBFloat16) {
  for (const Format& f : formats()) {
    if (f.codebook.size() != 16) continue;
    const FittedCodebook fit = fit_codebook_shifted(f.codebook, 4.0F, 16);
    for (int i = 0; i < 16; ++i) {
      EXPECT_EQ(std::fmod(fit.values[i], 1.0F / 16384), 0.0F) << f.name << i;
      EXPECT_NEAR(fit.values[i] * fit.factor, f.codebook[i], 1.0F / 8192) << f.name << i;
      EXPECT_TRUE(f.codebook[i] != 0.0F || fit.values[i] == 0.0F) << f.name << i;
    }
  }
}

}  // namespace
}  // namespace qbits
