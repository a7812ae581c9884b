#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <deque>
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

TEST(Linear4bitGradXCuda, AccuracyOfRoundedWeights) {
  QBITS_NEEDS_GPU();
  for (const char* format : {"nf4", "fp4", "int4"}) {
    for (const DType dtype : {DType::BFloat16, DType::Float16}) {
      const LinearCase c{.format = format, .block_size = 64, .n = 2048, .k = 256, .m = 40, .dtype = dtype};
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
}

TEST(Linear4bitGradXCuda, GraphReplaysWithNewInputs) {
  QBITS_NEEDS_GPU();
  for (const int64_t m : {20, 200}) {
    const LinearCase c{.format = "nf4", .block_size = 64, .n = 512, .k = 320, .m = m, .nested = true};
    LinearProblem problem(c, true, 31);
    Linear4bitGradXArgs args = problem.grad_x();
    const std::vector<Linear4bitPlan> plans = linear_4bit_grad_x_plans(cuda::problem_of(args));
    cudaStream_t stream = nullptr;
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    std::deque<DeviceBuffer> workspaces;
    std::vector<cudaGraphExec_t> executables(plans.size());
    for (size_t i = 0; i < plans.size(); ++i) {
      args.workspace = workspaces.emplace_back(static_cast<size_t>(plans[i].workspace_bytes)).data();
      cudaGraph_t graph = nullptr;
      ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), cudaSuccess);
      cuda::run(args, plans[i], Stream{stream});
      ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess) << to_string(plans[i]);
      ASSERT_EQ(cudaGraphInstantiate(&executables[i], graph, 0), cudaSuccess) << to_string(plans[i]);
      static_cast<void>(cudaGraphDestroy(graph));
    }
    for (uint64_t round = 0; round < 2; ++round) {
      problem.refill(40 + round);
      for (size_t i = 0; i < plans.size(); ++i) {
        problem.poison();
        ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
        ASSERT_EQ(cudaGraphLaunch(executables[i], stream), cudaSuccess);
        EXPECT_EQ(problem.mismatch(), "") << "replay " << round << ", m " << m << "; plan " << to_string(plans[i]);
      }
    }
    for (cudaGraphExec_t executable : executables) static_cast<void>(cudaGraphExecDestroy(executable));
    static_cast<void>(cudaStreamDestroy(stream));
  }
}

}  // namespace
}  // namespace qbits
