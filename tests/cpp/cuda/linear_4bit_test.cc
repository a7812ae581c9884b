#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "cuda/device.h"
#include "cuda/linear_4bit_cases.h"
#include "cuda/linear_4bit_kernels.h"

namespace qbits {
namespace {

using test::DeviceBuffer;
using test::LinearCase;
using test::LinearProblem;

struct RunStream {
  cudaStream_t handle = nullptr;
  RunStream() { EXPECT_EQ(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), cudaSuccess); }
  ~RunStream() { static_cast<void>(cudaStreamDestroy(handle)); }
  operator Stream() const { return Stream{handle}; }
};

const LinearCase kTall = {
    .format = "nf4", .block_size = 64, .n = 320, .k = 2048, .m = 24, .dtype = DType::BFloat16, .nested = true};

TEST(Linear4bitCuda, EveryPlanOfEveryCase) {
  QBITS_NEEDS_GPU();
  uint64_t seed = 1;
  for (const LinearCase& c : test::linear_cases()) {
    LinearProblem problem(c, false, seed++);
    Linear4bitArgs args = problem.forward();
    for (const Linear4bitPlan& plan : linear_4bit_plans(cuda::problem_of(args))) {
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

TEST(Linear4bitCuda, ChosenPlan) {
  QBITS_NEEDS_GPU();
  uint64_t seed = 1000;
  for (const LinearCase& c : test::linear_cases()) {
    LinearProblem problem(c, false, seed++);
    Linear4bitArgs args = problem.forward();
    const Linear4bitPlan plan = linear_4bit_plan(cuda::problem_of(args));
    const DeviceBuffer workspace(static_cast<size_t>(plan.workspace_bytes));
    args.workspace = workspace.data();
    cuda::run(args, plan, Stream{});
    EXPECT_EQ(problem.mismatch(), "") << to_string(c) << "; plan " << to_string(plan);
  }
}

// Few blocks, so that a small problem has several waves, and its ring more than one turn; an odd number of row tiles;
// rows of out that begin at 16 bytes, and that do not. Of blocks that share x, the second brings nothing of its last
// tile, or less than half.
TEST(Linear4bitCuda, SeveralWavesWithFewBlocks) {
  QBITS_NEEDS_GPU();
  uint64_t seed = 50;
  for (const char* format : {"nf4", "int4"}) {
    for (const DType dtype : {DType::BFloat16, DType::Float16}) {
      const LinearCase c{.format = format,
                         .block_size = 64,
                         .n = dtype == DType::BFloat16 ? 1096 : 1100,
                         .k = 1056,
                         .m = (dtype == DType::BFloat16) == (format[0] == 'n') ? 300 : 420,
                         .dtype = dtype,
                         .nested = format[0] == 'n',
                         .bias = true};
      LinearProblem problem(c, false, seed++);
      Linear4bitArgs args = problem.forward();
      Linear4bitProblem few = cuda::problem_of(args);
      few.sm_count = 6;
      for (const Linear4bitPlan& plan : linear_4bit_plans(few)) {
        const bool several = plan.wgmma.whole_tiles > plan.wgmma.blocks || !plan.wgmma.rest.empty();
        if (plan.kernel != Linear4bitKernel::Ahead && !several) continue;
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

// Blocks of the Stream kernel with 11 or 12 tiles in each phase, so that the ring's turns and those of the warps that
// bring scales, by fours and one by one, do not end where phases do.
TEST(Linear4bitCuda, PhasesOfManyTiles) {
  QBITS_NEEDS_GPU();
  uint64_t seed = 70;
  int phased = 0;
  bool hopper = false;
  const auto check = [&](LinearCase c) {
    c.n = 1100;
    c.m = 4;
    LinearProblem problem(c, false, seed++);
    const Linear4bitArgs args = problem.forward();
    Linear4bitProblem few = cuda::problem_of(args);
    few.sm_count = 6;
    hopper = few.compute_capability == 90;
    for (const Linear4bitPlan& plan : linear_4bit_plans(few)) {
      if (plan.phases == 1) continue;
      ++phased;
      for (int round = 0; round < 2; ++round) {
        problem.poison();
        cuda::run(args, plan, Stream{});
        EXPECT_EQ(problem.mismatch(), "") << to_string(c) << "; plan " << to_string(plan);
      }
    }
  };
  for (const int64_t block_size : {64, 32}) {
    for (const DType dtype : {DType::BFloat16, DType::Float16}) {
      for (const bool nested : {false, true}) {
        check({.format = "nf4", .block_size = block_size, .k = 8192, .dtype = dtype, .nested = nested});
      }
      for (const DType scale_dtype : {DType::Float32, DType::BFloat16, DType::Float16}) {
        check({.format = "int4", .block_size = block_size, .k = 8192, .dtype = dtype, .scale_dtype = scale_dtype});
      }
    }
  }
  check({.format = "nf4", .block_size = 64, .k = 11008});
  check({.format = "int4", .block_size = 8224, .k = 8224});
  EXPECT_EQ(phased, hopper ? 22 : 0);
}

TEST(Linear4bitCuda, AccuracyOfRoundedWeights) {
  QBITS_NEEDS_GPU();
  for (const int64_t m : {4, 100}) {
    for (const LinearCase& c : test::accuracy_cases(256, 2048, m)) {
      LinearProblem problem(c, false, 7);
      Linear4bitArgs args = problem.forward();
      for (const Linear4bitPlan& plan : linear_4bit_plans(cuda::problem_of(args))) {
        const DeviceBuffer workspace(static_cast<size_t>(plan.workspace_bytes));
        args.workspace = workspace.data();
        cuda::run(args, plan, Stream{});
        EXPECT_LE(problem.error(), 1.05 * problem.reference_error()) << to_string(c) << "; plan " << to_string(plan);
      }
    }
  }
}

TEST(Linear4bitCuda, NanScaleStaysInItsRow) {
  QBITS_NEEDS_GPU();
  for (const DType dtype : {DType::BFloat16, DType::Float16}) {
    const LinearCase c{.format = "nf4", .block_size = 64, .n = 70, .k = 256, .m = 9, .dtype = dtype};
    LinearProblem problem(c, false, 3);
    Linear4bitArgs args = problem.forward();
    const int64_t bad_row = 37;
    problem.spoil_scale(bad_row * 4 + 1);
    for (const Linear4bitPlan& plan : linear_4bit_plans(cuda::problem_of(args))) {
      const DeviceBuffer workspace(static_cast<size_t>(plan.workspace_bytes));
      args.workspace = workspace.data();
      problem.poison();
      cuda::run(args, plan, Stream{});
      const std::vector<float> got = problem.result();
      for (int64_t i = 0; i < c.m * c.n; ++i) {
        ASSERT_EQ(std::isnan(got[i]), i % c.n == bad_row)
            << "row " << i / c.n << ", column " << i % c.n << "; plan " << to_string(plan);
      }
    }
  }
}

TEST(Linear4bitCuda, OddScales) {
  QBITS_NEEDS_GPU();
  uint64_t seed = 1;
  for (const LinearCase& c : test::odd_scale_cases()) {
    LinearProblem problem(c, false, seed++);
    Linear4bitArgs args = problem.forward();
    for (const Linear4bitPlan& plan : linear_4bit_plans(cuda::problem_of(args))) {
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

TEST(Linear4bitCuda, TwoStreamsAtOnce) {
  QBITS_NEEDS_GPU();
  LinearProblem one(kTall, false, 21);
  LinearProblem two(kTall, false, 22);
  const RunStream streams[2];
  LinearProblem* const problems[2] = {&one, &two};
  const Linear4bitPlan plan = linear_4bit_plan(cuda::problem_of(one.forward()));
  const DeviceBuffer workspaces[2] = {DeviceBuffer(static_cast<size_t>(plan.workspace_bytes)),
                                      DeviceBuffer(static_cast<size_t>(plan.workspace_bytes))};
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < 2; ++i) {
      Linear4bitArgs args = problems[i]->forward();
      args.workspace = workspaces[i].data();
      cuda::run(args, plan, streams[i]);
    }
  }
  EXPECT_EQ(one.mismatch(), "") << to_string(plan);
  EXPECT_EQ(two.mismatch(), "") << to_string(plan);
}

TEST(Linear4bitCuda, GraphReplaysWithNewInputs) {
  QBITS_NEEDS_GPU();
  struct Inputs {
    int64_t m;
    DType dtype;
    int64_t k;  // 8192: in phases
  };
  constexpr Inputs kInputs[] = {{1, DType::BFloat16, 2048},
                                {1, DType::BFloat16, 8192},
                                {24, DType::BFloat16, 2048},
                                {24, DType::Float16, 2048},
                                {200, DType::BFloat16, 2048}};
  for (const auto& [m, dtype, k] : kInputs) {
    LinearCase c = kTall;
    c.m = m;
    c.dtype = dtype;
    c.k = k;
    LinearProblem problem(c, false, 31);
    Linear4bitArgs args = problem.forward();
    test::expect_graph_replays(problem, linear_4bit_plans(cuda::problem_of(args)),
                               [&](const Linear4bitPlan& plan, void* workspace, Stream stream) {
                                 args.workspace = workspace;
                                 cuda::run(args, plan, stream);
                               });
  }
}

}  // namespace
}  // namespace qbits
