#include <gtest/gtest.h>

#include <cmath>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "cuda/linear_4bit_cases.h"
#include "cuda/linear_4bit_kernels.h"

namespace qbits {
namespace {

using test::DeviceBuffer;
using test::LinearCase;
using test::LinearProblem;

TEST(Linear4bitGradXCuda, EveryPlanOfEveryCase) {
  QBITS_NEEDS_GPU();
  uint64_t seed = 1;
  for (const LinearCase& c : test::linear_cases()) {
    LinearProblem problem(c, true, seed++);
    Linear4bitGradXArgs args = problem.grad_x();
    for (const Linear4bitPlan& plan : linear_4bit_grad_x_plans(cuda::problem_of(args))) {
      const DeviceBuffer workspace(static_cast<size_t>(plan.workspace_bytes));
      args.workspace = workspace.data();
      problem.poison();
      ASSERT_NO_THROW(cuda::run(args, plan, Stream{})) << to_string(c) << "; plan " << to_string(plan);
      EXPECT_EQ(problem.mismatch(), "") << to_string(c) << "; plan " << to_string(plan);
      const std::vector<uint8_t> first = problem.result_bytes();
      problem.poison();
      cuda::run(args, plan, Stream{});
      EXPECT_EQ(problem.result_bytes(), first)
          << "bits differ from run to run: " << to_string(c) << "; plan " << to_string(plan);
    }
  }
}

TEST(Linear4bitGradXCuda, ChosenPlan) {
  QBITS_NEEDS_GPU();
  uint64_t seed = 1000;
  for (const LinearCase& c : test::linear_cases()) {
    LinearProblem problem(c, true, seed++);
    Linear4bitGradXArgs args = problem.grad_x();
    const Linear4bitPlan plan = linear_4bit_grad_x_plan(cuda::problem_of(args));
    const DeviceBuffer workspace(static_cast<size_t>(plan.workspace_bytes));
    args.workspace = workspace.data();
    cuda::run(args, plan, Stream{});
    EXPECT_EQ(problem.mismatch(), "") << to_string(c) << "; plan " << to_string(plan);
  }
}

// Few blocks, so that a small problem has several waves, and its ring more than one turn.
TEST(Linear4bitGradXCuda, SeveralWavesWithFewBlocks) {
  QBITS_NEEDS_GPU();
  uint64_t seed = 50;
  for (const char* format : {"nf4", "int4"}) {
    for (const DType dtype : {DType::BFloat16, DType::Float16}) {
      const LinearCase c{.format = format,
                         .block_size = 64,
                         .n = 1064,
                         .k = 1120,
                         .m = (dtype == DType::BFloat16) == (format[0] == 'n') ? 300 : 420,
                         .dtype = dtype,
                         .nested = format[0] == 'n'};
      LinearProblem problem(c, true, seed++);
      Linear4bitGradXArgs args = problem.grad_x();
      Linear4bitProblem few = cuda::problem_of(args);
      few.sm_count = 6;
      for (const Linear4bitPlan& plan : linear_4bit_grad_x_plans(few)) {
        if (plan.kernel != Linear4bitKernel::Ahead && plan.wgmma.whole_tiles <= plan.wgmma.blocks) continue;
        const DeviceBuffer workspace(static_cast<size_t>(plan.workspace_bytes));
        args.workspace = workspace.data();
        for (int round = 0; round < 3; ++round) {
          problem.poison();
          cuda::run(args, plan, Stream{});
          EXPECT_EQ(problem.mismatch(), "") << to_string(c) << "; plan " << to_string(plan);
        }
      }
    }
  }
}

TEST(Linear4bitGradXCuda, AccuracyOfRoundedWeights) {
  QBITS_NEEDS_GPU();
  for (const LinearCase& c : test::accuracy_cases(2048, 256, 40)) {
    LinearProblem problem(c, true, 7);
    Linear4bitGradXArgs args = problem.grad_x();
    for (const Linear4bitPlan& plan : linear_4bit_grad_x_plans(cuda::problem_of(args))) {
      const DeviceBuffer workspace(static_cast<size_t>(plan.workspace_bytes));
      args.workspace = workspace.data();
      cuda::run(args, plan, Stream{});
      EXPECT_LE(problem.error(), 1.05 * problem.reference_error()) << to_string(c) << "; plan " << to_string(plan);
    }
  }
}

TEST(Linear4bitGradXCuda, NanScaleStaysInItsColumns) {
  QBITS_NEEDS_GPU();
  for (const DType dtype : {DType::BFloat16, DType::Float16}) {
    const LinearCase c{.format = "nf4", .block_size = 64, .n = 72, .k = 256, .m = 9, .dtype = dtype};
    LinearProblem problem(c, true, 3);
    Linear4bitGradXArgs args = problem.grad_x();
    const int64_t bad_block = 1;  // of the row
    problem.spoil_scale(37 * 4 + bad_block);
    for (const Linear4bitPlan& plan : linear_4bit_grad_x_plans(cuda::problem_of(args))) {
      const DeviceBuffer workspace(static_cast<size_t>(plan.workspace_bytes));
      args.workspace = workspace.data();
      problem.poison();
      cuda::run(args, plan, Stream{});
      const std::vector<float> got = problem.result();
      for (int64_t i = 0; i < c.m * c.k; ++i) {
        ASSERT_EQ(std::isnan(got[i]), i % c.k / c.block_size == bad_block)
            << "row " << i / c.k << ", column " << i % c.k << "; plan " << to_string(plan);
      }
    }
  }
}

TEST(Linear4bitGradXCuda, OddScales) {
  QBITS_NEEDS_GPU();
  uint64_t seed = 1;
  for (const LinearCase& c : test::odd_scale_cases()) {
    LinearProblem problem(c, true, seed++);
    Linear4bitGradXArgs args = problem.grad_x();
    for (const Linear4bitPlan& plan : linear_4bit_grad_x_plans(cuda::problem_of(args))) {
      // Fractions subtract four scales, which overflow from 8.5e37 on: infinity comes out as NaN.
      const bool fractions = plan.wgmma.decode == WgmmaDecode::Weights && c.dtype == DType::Float16;
      if (plan.kernel == Linear4bitKernel::Wgmma && fractions && c.odd_scale > 8e37F) continue;
      const DeviceBuffer workspace(static_cast<size_t>(plan.workspace_bytes));
      args.workspace = workspace.data();
      problem.poison();
      cuda::run(args, plan, Stream{});
      EXPECT_EQ(problem.mismatch(), "") << to_string(c) << "; plan " << to_string(plan);
    }
  }
}

TEST(Linear4bitGradXCuda, GraphReplaysWithNewInputs) {
  QBITS_NEEDS_GPU();
  const std::pair<int64_t, DType> kRows[] = {{20, DType::BFloat16}, {20, DType::Float16}, {200, DType::BFloat16}};
  for (const auto& [m, dtype] : kRows) {
    const LinearCase c{.format = "nf4", .block_size = 64, .n = 512, .k = 320, .m = m, .dtype = dtype, .nested = true};
    LinearProblem problem(c, true, 31);
    Linear4bitGradXArgs args = problem.grad_x();
    test::expect_graph_replays(problem, linear_4bit_grad_x_plans(cuda::problem_of(args)),
                               [&](const Linear4bitPlan& plan, void* workspace, Stream stream) {
                                 args.workspace = workspace;
                                 cuda::run(args, plan, stream);
                               });
  }
}

}  // namespace
}  // namespace qbits
