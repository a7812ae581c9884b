#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <limits>
#include <vector>

#include "cuda/device.h"
#include "cuda/grouped_linear_4bit_cases.h"
#include "cuda/grouped_linear_4bit_kernels.h"

namespace qbits {
namespace {

using test::GroupedCase;
using test::GroupedProblem;
using test::LinearCase;

struct RunStream {
  cudaStream_t handle = nullptr;
  RunStream() { EXPECT_EQ(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking), cudaSuccess); }
  ~RunStream() { static_cast<void>(cudaStreamDestroy(handle)); }
  operator Stream() const { return Stream{handle}; }
};

// Product and gradient in turn: f(problem, args, plans, what).
template <class F>
void for_both(const GroupedCase& c, uint64_t seed, F f) {
  {
    GroupedProblem problem(c, false, seed);
    const GroupedLinear4bitArgs args = problem.forward();
    f(problem, args, grouped_linear_4bit_plans(cuda::problem_of(args)), "product, " + to_string(c));
  }
  GroupedProblem problem(c, true, seed);
  const GroupedLinear4bitGradXArgs args = problem.grad_x();
  f(problem, args, grouped_linear_4bit_grad_x_plans(cuda::problem_of(args)), "gradient, " + to_string(c));
}

Linear4bitPlan chosen_plan(const GroupedLinear4bitArgs& args) {
  return grouped_linear_4bit_plan(cuda::problem_of(args));
}
Linear4bitPlan chosen_plan(const GroupedLinear4bitGradXArgs& args) {
  return grouped_linear_4bit_grad_x_plan(cuda::problem_of(args));
}

TEST(GroupedLinear4bitCuda, EveryPlanOfEveryCase) {
  QBITS_NEEDS_GPU();
  uint64_t seed = 1;
  for (const GroupedCase& c : test::grouped_cases()) {
    for_both(c, seed++, [](GroupedProblem& problem, const auto& args, const auto& plans, const std::string& what) {
      for (const Linear4bitPlan& plan : plans) {
        problem.poison();
        ASSERT_NO_THROW(cuda::run(args, plan, Stream{})) << what << "; plan " << to_string(plan);
        EXPECT_EQ(problem.mismatch(), "") << what << "; plan " << to_string(plan);
        const std::vector<uint8_t> first = problem.result_bytes();
        problem.poison();
        cuda::run(args, plan, Stream{});
        EXPECT_EQ(problem.result_bytes(), first)
            << "bits differ from run to run: " << what << "; plan " << to_string(plan);
      }
      problem.poison();
      cuda::run(args, chosen_plan(args), Stream{});
      EXPECT_EQ(problem.mismatch(), "") << what;
    });
  }
}

const LinearCase kExpert = {
    .format = "nf4", .block_size = 64, .n = 200, .k = 1024, .m = 60, .nested = true, .bias = true};
const GroupedCase kMixture = test::grouped_case(kExpert, {0, 17, 17, 21, 58, 60});

// As many tiles as clusters and more: two pieces of x are shared out to halves of them, three to all.
TEST(GroupedLinear4bitCuda, FewPiecesOfManyTiles) {
  QBITS_NEEDS_GPU();
  uint64_t seed = 1;
  for (const int64_t k : {512, 4160}) {
    for (const char* format : {"nf4", "int4"}) {
      for (const DType dtype : {DType::BFloat16, DType::Float16}) {
        for (const std::vector<int32_t>& offsets :
             {std::vector<int32_t>{0, 1, 1, 3}, {0, 0, 8, 12}, {0, 0, 9, 9}, {0, 4, 5, 6}}) {
          const LinearCase c{
              .format = format, .block_size = 64, .n = 2200, .k = k, .m = offsets.back(), .dtype = dtype, .bias = true};
          GroupedProblem problem(test::grouped_case(c, offsets), false, seed++);
          const GroupedLinear4bitArgs args = problem.forward();
          for (const Linear4bitPlan& plan : grouped_linear_4bit_plans(cuda::problem_of(args))) {
            if (plan.kernel != Linear4bitKernel::Stream) continue;
            problem.poison();
            cuda::run(args, plan, Stream{});
            EXPECT_EQ(problem.mismatch(), "") << to_string(c) << "; plan " << to_string(plan);
          }
        }
      }
    }
  }
}

TEST(GroupedLinear4bitCuda, RowsOfNoExpertAreNotWritten) {
  QBITS_NEEDS_GPU();
  for (const std::vector<int32_t>& offsets :
       {std::vector<int32_t>{5, 17, 17, 21, 30, 40}, std::vector<int32_t>{0, 0, 0, 0, 0, 0}}) {
    GroupedCase c = kMixture;
    c.offsets = offsets;
    for_both(c, 5, [](GroupedProblem& problem, const auto& args, const auto& plans, const std::string& what) {
      for (const Linear4bitPlan& plan : plans) {
        problem.poison();
        cuda::run(args, plan, Stream{});
        EXPECT_EQ(problem.mismatch(), "") << what << "; plan " << to_string(plan);
      }
    });
  }
}

// Nothing outside of the result may be touched, which compute-sanitizer watches too.
TEST(GroupedLinear4bitCuda, OffsetsWithoutSenseStayInside) {
  QBITS_NEEDS_GPU();
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  for (const std::vector<int32_t>& offsets :
       {std::vector<int32_t>{-7, 200, 3, kMost, -kMost, kMost}, std::vector<int32_t>{0, 60, 0, 60, 0, 60},
        std::vector<int32_t>{60, 50, 40, 30, 20, 10}}) {
    for_both(kMixture, 6, [&](GroupedProblem& problem, const auto& args, const auto& plans, const std::string& what) {
      problem.write_offsets(offsets);
      for (const Linear4bitPlan& plan : plans) {
        problem.poison();
        cuda::run(args, plan, Stream{});
        EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess) << what << "; plan " << to_string(plan);
        EXPECT_EQ(problem.stray_write(), "") << what << "; plan " << to_string(plan);
      }
    });
  }
}

// An expert's weights lie side by side with the next one's: tiles reach over the border.
TEST(GroupedLinear4bitCuda, NanScaleStaysWithItsExpert) {
  QBITS_NEEDS_GPU();
  GroupedCase c = kMixture;
  c.linear.nested = false;
  for_both(c, 7, [](GroupedProblem& problem, const auto& args, const auto& plans, const std::string& what) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    // The first block of expert 3.
    float* const scales = const_cast<float*>(static_cast<const float*>(args.weight.absmax.values));
    ASSERT_EQ(cudaMemcpy(scales + 3 * problem.n() * args.weight.cols / 64, &nan, 4, cudaMemcpyHostToDevice),
              cudaSuccess);
    for (const Linear4bitPlan& plan : plans) {
      problem.poison();
      cuda::run(args, plan, Stream{});
      const std::vector<float> got = problem.result();
      for (int64_t i = 0; i < args.m * problem.out_cols(); ++i) {
        if (problem.expert_of(i / problem.out_cols()) == 3) continue;
        ASSERT_FALSE(std::isnan(got[i])) << what << ", element " << i << "; plan " << to_string(plan);
      }
    }
  });
}

TEST(GroupedLinear4bitCuda, TwoStreamsAtOnce) {
  QBITS_NEEDS_GPU();
  for (const int64_t m : {60, 300}) {
    GroupedCase c = kMixture;
    c.linear.m = m;
    c.offsets = {0, 17, 17, 21, 58, static_cast<int32_t>(m)};
    GroupedProblem one(c, false, 21);
    GroupedProblem two(c, false, 22);
    one.poison();
    two.poison();
    const RunStream streams[2];
    GroupedProblem* const problems[2] = {&one, &two};
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    for (int round = 0; round < 20; ++round) {
      for (int i = 0; i < 2; ++i) cuda::run(problems[i]->forward(), chosen_plan(problems[i]->forward()), streams[i]);
    }
    EXPECT_EQ(one.mismatch(), "") << m;
    EXPECT_EQ(two.mismatch(), "") << m;
  }
}

TEST(GroupedLinear4bitCuda, GraphReplaysWithNewInputsAndOffsets) {
  QBITS_NEEDS_GPU();
  for_both(kMixture, 31, [](GroupedProblem& problem, const auto& args, const auto& plans, const std::string& what) {
    const RunStream stream;
    std::vector<cudaGraphExec_t> executables(plans.size());
    for (size_t i = 0; i < plans.size(); ++i) {
      cudaGraph_t graph = nullptr;
      ASSERT_EQ(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeGlobal), cudaSuccess);
      cuda::run(args, plans[i], stream);
      ASSERT_EQ(cudaStreamEndCapture(stream.handle, &graph), cudaSuccess) << to_string(plans[i]);
      ASSERT_EQ(cudaGraphInstantiate(&executables[i], graph, 0), cudaSuccess) << to_string(plans[i]);
      static_cast<void>(cudaGraphDestroy(graph));
    }
    uint64_t round = 0;
    for (const std::vector<int32_t>& offsets :
         {std::vector<int32_t>{0, 0, 60, 60, 60, 60}, std::vector<int32_t>{0, 1, 2, 3, 4, 60},
          std::vector<int32_t>{0, 12, 24, 36, 48, 60}}) {
      problem.refill(offsets, 40 + ++round);
      for (size_t i = 0; i < plans.size(); ++i) {
        problem.poison();
        ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
        ASSERT_EQ(cudaGraphLaunch(executables[i], stream.handle), cudaSuccess);
        EXPECT_EQ(problem.mismatch(), "") << "replay " << round << ", " << what << "; plan " << to_string(plans[i]);
      }
    }
    for (cudaGraphExec_t executable : executables) static_cast<void>(cudaGraphExecDestroy(executable));
  });
}

TEST(GroupedLinear4bitCuda, AccuracyOfRoundedWeights) {
  QBITS_NEEDS_GPU();
  for (const char* format : {"nf4", "fp4", "int4"}) {
    for (const DType dtype : {DType::BFloat16, DType::Float16}) {
      for (const int32_t m : {4, 100}) {
        // One expert has every row, and so the plain product's error.
        const LinearCase linear{.format = format, .block_size = 64, .n = 256, .k = 2048, .m = m, .dtype = dtype};
        const GroupedCase c = test::grouped_case(linear, {0, m});
        for_both(c, 7, [](GroupedProblem& problem, const auto& args, const auto& plans, const std::string& what) {
          for (const Linear4bitPlan& plan : plans) {
            cuda::run(args, plan, Stream{});
            EXPECT_LE(problem.error(), 1.05 * problem.reference_error()) << what << "; plan " << to_string(plan);
          }
        });
      }
    }
  }
}

}  // namespace
}  // namespace qbits
