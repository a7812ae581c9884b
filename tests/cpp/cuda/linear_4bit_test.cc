#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <limits>
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

TEST(Linear4bitCuda, AccuracyOfRoundedWeights) {
  QBITS_NEEDS_GPU();
  for (const char* format : {"nf4", "fp4", "int4"}) {
    for (const DType dtype : {DType::BFloat16, DType::Float16}) {
      for (const int64_t m : {4, 100}) {
        const LinearCase c{.format = format, .block_size = 64, .n = 256, .k = 2048, .m = m, .dtype = dtype};
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
}

TEST(Linear4bitCuda, NanScaleStaysInItsRow) {
  QBITS_NEEDS_GPU();
  LinearCase c{.format = "nf4", .block_size = 64, .n = 70, .k = 256, .m = 9};
  LinearProblem problem(c, false, 3);
  Linear4bitArgs args = problem.forward();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const int64_t bad_row = 37;
  ASSERT_EQ(cudaMemcpy(const_cast<float*>(static_cast<const float*>(args.weight.absmax.values)) + bad_row * 4 + 1, &nan,
                       4, cudaMemcpyHostToDevice),
            cudaSuccess);
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
  for (const int64_t m : {1, 24, 200}) {
    LinearCase c = kTall;
    c.m = m;
    LinearProblem problem(c, false, 31);
    Linear4bitArgs args = problem.forward();
    const std::vector<Linear4bitPlan> plans = linear_4bit_plans(cuda::problem_of(args));
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
