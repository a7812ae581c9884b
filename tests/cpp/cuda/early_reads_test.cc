#include "cuda/early_reads.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <thread>
#include <vector>

#include "cuda/capture.h"
#include "cuda/device.h"
#include "cuda/grouped_linear_4bit_cases.h"
#include "cuda/grouped_linear_4bit_kernels.h"
#include "cuda/linear_4bit_cases.h"
#include "cuda/linear_4bit_kernels.h"

// Products that in a graph follow on one another read early, but never what may still be written.

namespace qbits {
namespace {

using cuda::MemoryRange;
using test::CaptureStream;
using test::check;
using test::DeviceBuffer;
using test::Graph;
using test::GroupedProblem;
using test::LinearCase;
using test::LinearProblem;

void run(const LinearProblem& problem, bool grad_x, const Linear4bitPlan& plan, const DeviceBuffer& workspace,
         Stream stream) {
  if (grad_x) {
    Linear4bitGradXArgs args = problem.grad_x();
    args.workspace = workspace.data();
    return cuda::run(args, plan, stream);
  }
  Linear4bitArgs args = problem.forward();
  args.workspace = workspace.data();
  cuda::run(args, plan, stream);
}

// A product, or a gradient, by its plan, with the workspace it needs.
struct Call {
  LinearProblem problem;
  bool grad_x;
  Linear4bitPlan plan;
  DeviceBuffer workspace;

  Call(const LinearCase& c, bool is_grad, uint64_t seed)
      : problem(c, is_grad, seed),
        grad_x(is_grad),
        plan(is_grad ? linear_4bit_grad_x_plan(cuda::problem_of(problem.grad_x()))
                     : linear_4bit_plan(cuda::problem_of(problem.forward()))),
        workspace(static_cast<size_t>(plan.workspace_bytes)) {}

  void run(Stream stream) const { qbits::run(problem, grad_x, plan, workspace, stream); }
};

constexpr int64_t kRows[] = {1, 4, 16, 40, 64, 128, 300};

LinearCase product_of(int64_t m, DType dtype = DType::BFloat16) {
  return {.format = "nf4", .block_size = 64, .n = 1024, .k = 1024, .m = m, .dtype = dtype, .nested = m % 3 == 1};
}

TEST(CudaEarlyReads, DirectlyAfterAProductUnderCapture) {
  QBITS_NEEDS_HOPPER();
  for (const int64_t m : kRows) {
    LinearCase c = product_of(m);
    c.n = 1000;
    const Call call(c, false, 1);
    ASSERT_TRUE(call.plan.kernel == Linear4bitKernel::Stream || call.plan.kernel == Linear4bitKernel::Wgmma);
    const Linear4bitArgs args = call.problem.forward();
    const DeviceBuffer other(1000);
    const CaptureStream stream;
    const CaptureStream another;
    const size_t out_bytes = static_cast<size_t>(m * args.weight.rows * 2);
    const size_t out_lines = (out_bytes + 127) / 128 * 128;
    const auto allowed = [](Stream on, const void* begin, size_t bytes) {
      return cuda::EarlyReads(on).allowed(MemoryRange{begin, bytes});
    };
    const uint8_t* const out = static_cast<const uint8_t*>(args.out);
    call.run(stream);
    EXPECT_FALSE(allowed(stream, other.data(), 1000)) << "without capture";
    check(cudaDeviceSynchronize());
    Graph graph(stream, [&] {
      EXPECT_FALSE(allowed(stream, other.data(), 1000)) << "at the beginning";
      call.run(stream);
      EXPECT_TRUE(allowed(stream, other.data(), 1000));
      EXPECT_TRUE(cuda::EarlyReads(stream).allowed(args.weight, {{other.data(), 1000}}));
      EXPECT_FALSE(cuda::EarlyReads(stream).allowed(args.weight, {{other.data(), 1000}, {out, 1}}));
      EXPECT_FALSE(allowed(another, other.data(), 1000)) << "on another stream";
      EXPECT_FALSE(allowed(stream, out, 1));
      EXPECT_FALSE(allowed(stream, out + out_bytes - 1, 1));
      EXPECT_FALSE(allowed(stream, out - 16, 17));
      EXPECT_FALSE(allowed(stream, out + out_lines - 1, 1)) << "of the same line of a cache";
      if (call.plan.workspace_bytes == 0) {
        EXPECT_TRUE(allowed(stream, out + out_lines, 1000));
      }
      EXPECT_TRUE(allowed(stream, out, 0));
      check(cudaMemsetAsync(other.data(), 0, 1000, stream.handle));
      EXPECT_FALSE(allowed(stream, other.data(), 1000)) << "after another node";
      call.run(stream);
      EXPECT_TRUE(allowed(stream, other.data(), 1000));
    });
    Graph next(stream, [&] { EXPECT_FALSE(allowed(stream, other.data(), 1000)) << "in the next graph"; });
    graph.replay();
    EXPECT_EQ(call.problem.mismatch(), "");
  }
}

// A stream that joins the capture, a node that follows on two, another thread.
TEST(CudaEarlyReads, AlongsideOneAnother) {
  QBITS_NEEDS_HOPPER();
  const Call call(product_of(4), false, 2);
  const CaptureStream stream;
  const CaptureStream another;
  const DeviceBuffer memory(1000);
  const auto allowed = [&](Stream on) { return cuda::EarlyReads(on).allowed(MemoryRange{memory.data(), 1000}); };
  cudaEvent_t forked = nullptr;
  cudaEvent_t joined = nullptr;
  check(cudaEventCreateWithFlags(&forked, cudaEventDisableTiming));
  check(cudaEventCreateWithFlags(&joined, cudaEventDisableTiming));
  Graph graph(stream, [&] {
    call.run(stream);
    check(cudaEventRecord(forked, stream.handle));
    check(cudaStreamWaitEvent(another.handle, forked));
    EXPECT_TRUE(allowed(stream));
    std::thread([&] { EXPECT_FALSE(allowed(stream)) << "in another thread"; }).join();
    EXPECT_TRUE(allowed(another)) << "after the product alone";
    check(cudaMemsetAsync(memory.data(), 0, 1000, another.handle));
    EXPECT_FALSE(allowed(another)) << "after another node";
    EXPECT_TRUE(allowed(stream));
    check(cudaEventRecord(joined, another.handle));
    check(cudaStreamWaitEvent(stream.handle, joined));
    EXPECT_FALSE(allowed(stream)) << "after two nodes";
    call.run(stream);
    EXPECT_TRUE(allowed(stream));
    EXPECT_FALSE(allowed(another));
  });
  graph.replay();
  check(cudaEventDestroy(forked));
  check(cudaEventDestroy(joined));
}

TEST(CudaEarlyReads, ChainsOfProductsHaveTheSameBits) {
  QBITS_NEEDS_HOPPER();
  for (const DType dtype : {DType::BFloat16, DType::Float16}) {
    std::deque<Call> calls;
    std::vector<std::vector<uint8_t>> want;
    uint64_t seed = 10;
    for (const int64_t m : kRows) {
      LinearCase c = product_of(m, dtype);
      calls.emplace_back(c, false, seed++);
      calls.emplace_back(c, true, seed++);
      c.format = "int4";
      c.nested = false;
      c.n = 500;
      calls.emplace_back(c, false, seed++);
    }
    for (const int64_t m : {1, 16, 70}) {  // several tiles for each block
      calls.emplace_back(LinearCase{.format = "nf4", .block_size = 64, .n = 40000, .k = 512, .m = m}, false, seed++);
    }
    const CaptureStream stream;
    for (Call& call : calls) {
      call.run(stream);
      check(cudaDeviceSynchronize());
      EXPECT_EQ(call.problem.mismatch(), "") << to_string(call.plan);
      want.push_back(call.problem.result_bytes());
    }
    Graph graph(stream, [&] {
      for (int round = 0; round < 3; ++round) {
        for (const Call& call : calls) call.run(stream);
      }
    });
    for (int replay = 0; replay < 4; ++replay) {
      for (Call& call : calls) call.problem.poison();
      graph.replay();
      for (size_t i = 0; i < calls.size(); ++i) {
        EXPECT_EQ(calls[i].problem.result_bytes(), want[i]) << to_string(calls[i].plan);
      }
    }
  }
}

// Plans for few blocks share tiles, and so need a workspace: the same one for all that follow on one another.
TEST(CudaEarlyReads, ChainsOfEveryPlanShareAWorkspace) {
  QBITS_NEEDS_HOPPER();
  const CaptureStream stream;
  int with_workspace = 0;
  for (const bool grad_x : {false, true}) {
    for (const int64_t m : kRows) {
      LinearCase c = product_of(m);
      c.n = 1100;
      LinearProblem problem(c, grad_x, 20);
      for (const int sm_count : {6, 132}) {
        Linear4bitProblem few = grad_x ? cuda::problem_of(problem.grad_x()) : cuda::problem_of(problem.forward());
        few.sm_count = sm_count;
        for (const Linear4bitPlan& plan : grad_x ? linear_4bit_grad_x_plans(few) : linear_4bit_plans(few)) {
          if (plan.kernel != Linear4bitKernel::Stream && plan.kernel != Linear4bitKernel::Wgmma) continue;
          const DeviceBuffer workspace(static_cast<size_t>(plan.workspace_bytes));
          with_workspace += plan.workspace_bytes > 0;
          run(problem, grad_x, plan, workspace, stream);
          check(cudaDeviceSynchronize());
          ASSERT_EQ(problem.mismatch(), "") << to_string(plan) << (grad_x ? "; gradient" : "");
          const std::vector<uint8_t> want = problem.result_bytes();
          Graph graph(stream, [&] {
            for (int i = 0; i < 4; ++i) run(problem, grad_x, plan, workspace, stream);
          });
          for (int replay = 0; replay < 3; ++replay) {
            problem.poison();
            graph.replay();
            ASSERT_EQ(problem.result_bytes(), want) << to_string(plan) << (grad_x ? "; gradient" : "");
          }
        }
      }
    }
  }
  EXPECT_GT(with_workspace, 0);
}

TEST(CudaEarlyReads, ChainsOfExpertsHaveTheSameBits) {
  QBITS_NEEDS_HOPPER();
  const CaptureStream stream;
  const auto compare = [&](GroupedProblem& problem, const auto& args, const std::vector<Linear4bitPlan>& plans) {
    for (const Linear4bitPlan& plan : plans) {
      cuda::run(args, plan, stream);
      check(cudaDeviceSynchronize());
      EXPECT_EQ(problem.mismatch(), "") << to_string(plan);
      const std::vector<uint8_t> want = problem.result_bytes();
      Graph graph(stream, [&] {
        for (int i = 0; i < 4; ++i) cuda::run(args, plan, stream);
      });
      for (int replay = 0; replay < 3; ++replay) {
        problem.poison();
        graph.replay();
        EXPECT_EQ(problem.result_bytes(), want) << to_string(plan);
      }
    }
  };
  for (const std::vector<int32_t>& offsets :
       {std::vector<int32_t>{0, 1, 1, 2, 2}, {0, 17, 17, 58, 60}, {0, 100, 350, 350, 500}}) {
    const test::GroupedCase c = test::grouped_case({.format = "nf4",
                                                    .block_size = 64,
                                                    .n = 520,
                                                    .k = 512,
                                                    .m = offsets.back(),
                                                    .dtype = DType::BFloat16,
                                                    .nested = offsets[1] > 1},
                                                   offsets);
    GroupedProblem product(c, false, 3);
    const GroupedLinear4bitArgs args = product.forward();
    compare(product, args, grouped_linear_4bit_plans(cuda::problem_of(args)));
    GroupedProblem gradient(c, true, 4);
    const GroupedLinear4bitGradXArgs grad_args = gradient.grad_x();
    compare(gradient, grad_args, grouped_linear_4bit_grad_x_plans(cuda::problem_of(grad_args)));
  }
}

// Operands that the product before writes, or a node between the two.
TEST(CudaEarlyReads, OperandsThatTheGraphWrites) {
  QBITS_NEEDS_HOPPER();
  const Call before({.format = "nf4", .block_size = 64, .n = 1024, .k = 2048, .m = 640}, false, 5);
  void* const written = before.problem.forward().out;
  const size_t bytes = 640 * 1024 * 2;
  const DeviceBuffer copy(bytes);
  const CaptureStream stream;
  for (const int64_t m : kRows) {
    Call after({.format = "nf4", .block_size = 64, .n = 512, .k = 1024, .m = m}, false, 6);
    for (const bool is_x : {false, true}) {
      const auto product_with = [&](const void* operand) {
        Linear4bitArgs args = after.problem.forward();
        args.workspace = after.workspace.data();
        if (is_x) {
          args.x = operand;
        } else {
          args.weight.codes = static_cast<const uint8_t*>(operand);
        }
        cuda::run(args, after.plan, stream);
      };
      const auto clear = [&](void* memory) { check(cudaMemsetAsync(memory, 0x77, bytes, stream.handle)); };
      before.run(stream);
      check(cudaDeviceSynchronize());
      product_with(written);
      check(cudaDeviceSynchronize());
      const std::vector<uint8_t> want = after.problem.result_bytes();
      Graph by_product(stream, [&] {
        clear(written);
        before.run(stream);
        product_with(written);
      });
      Graph between(stream, [&] {
        before.run(stream);
        clear(copy.data());
        before.run(stream);
        check(cudaMemcpyAsync(copy.data(), written, bytes, cudaMemcpyDeviceToDevice, stream.handle));
        product_with(copy.data());
      });
      for (int replay = 0; replay < 3; ++replay) {
        for (Graph* const graph : {&by_product, &between}) {
          after.problem.poison();
          graph->replay();
          EXPECT_EQ(after.problem.result_bytes(), want) << to_string(after.plan) << (is_x ? "; x" : "; codes");
        }
      }
    }
  }
}

// Operands that came by the same graph, before the product before: they differ from replay to replay.
TEST(CudaEarlyReads, OperandsThatTheGraphWroteBefore) {
  QBITS_NEEDS_HOPPER();
  const CaptureStream stream;
  struct Changing {  // two values of an operand of the product
    void* place;
    size_t bytes;
    std::vector<uint8_t> values[2];
    DeviceBuffer current;

    Changing(const void* operand, size_t size) : place(const_cast<void*>(operand)), bytes(size), current(size) {
      values[0].resize(size);
      check(cudaMemcpy(values[0].data(), operand, size, cudaMemcpyDeviceToHost));
      values[1].assign(values[0].rbegin(), values[0].rend());
    }
    void write(int value) { current.write(values[value].data(), bytes); }
    void copy(Stream to) const {
      check(cudaMemcpyAsync(place, current.data(), bytes, cudaMemcpyDeviceToDevice,
                            static_cast<cudaStream_t>(to.handle)));
    }
  };
  const auto reversed_floats = [](Changing& c) {
    for (size_t i = 0; i < c.bytes; i += 4) std::copy_n(&c.values[0][i], 4, &c.values[1][c.bytes - 4 - i]);
  };
  for (const int64_t m : kRows) {
    const LinearCase c{.format = "nf4", .block_size = 64, .n = 1024, .k = 1024, .m = m};
    const Call first(c, false, 7);
    const Call before(c, false, 8);
    Call after(c, false, 9);
    Linear4bitArgs args = after.problem.forward();
    args.workspace = after.workspace.data();
    for (const bool from_product : {false, true}) {
      // x, or that of the product whose result is x; the weight.
      const Linear4bitArgs source = from_product ? first.problem.forward() : args;
      if (from_product) args.x = source.out;
      Changing x(source.x, static_cast<size_t>(m * 1024 * 2));
      for (size_t i = 0; i < x.bytes; i += 2) std::copy_n(&x.values[0][i], 2, &x.values[1][x.bytes - 2 - i]);
      Changing codes(args.weight.codes, 1024 * 1024 / 2);
      Changing scales(args.weight.absmax.values, 1024 * 1024 / 64 * 4);
      reversed_floats(scales);
      std::vector<uint8_t> want[2];
      for (int value = 0; value < 2; ++value) {
        for (Changing* const operand : {&x, &codes, &scales}) {
          operand->write(value);
          check(cudaDeviceSynchronize());  // an upload may still be on its way
          operand->copy(stream);
        }
        check(cudaDeviceSynchronize());
        if (from_product) first.run(stream);
        check(cudaDeviceSynchronize());
        cuda::run(args, after.plan, stream);
        check(cudaDeviceSynchronize());
        want[value] = after.problem.result_bytes();
      }
      EXPECT_NE(want[0], want[1]);
      Graph graph(stream, [&] {
        for (const Changing* const operand : {&x, &codes, &scales}) operand->copy(stream);
        if (from_product) first.run(stream);
        before.run(stream);
        EXPECT_TRUE(cuda::EarlyReads(stream).allowed(args.weight, {cuda::memory_of(args.x, m, 1024, DType::BFloat16)}));
        cuda::run(args, after.plan, stream);
      });
      for (int replay = 0; replay < 20; ++replay) {
        for (Changing* const operand : {&x, &codes, &scales}) operand->write(replay % 2);
        after.problem.poison();
        graph.replay();
        ASSERT_EQ(after.problem.result_bytes(), want[replay % 2]) << to_string(after.plan) << ", replay " << replay;
      }
    }
  }
}

}  // namespace
}  // namespace qbits
