#include <string>

#include "cuda/grouped_linear_4bit_kernels.h"
#include "cuda/launch.h"
#include "cuda/linear_4bit_problem.h"
#include "cuda/linear_4bit_simt.cuh"

namespace qbits::cuda {
namespace {

constexpr std::string_view kOp = "grouped_linear_4bit";

}  // namespace

Linear4bitProblem problem_of(const GroupedLinear4bitArgs& args) {
  const bool aligned = all_on_16_bytes(args.x, args.weight.codes, args.out);
  return problem_of(kOp, args.weight, args.experts, args.m, args.dtype, args.device, aligned);
}

Linear4bitProblem problem_of(const GroupedLinear4bitGradXArgs& args) {
  const bool aligned = all_on_16_bytes(args.grad, args.weight.codes, args.out);
  return problem_of(kOp, args.weight, args.experts, args.m, args.dtype, args.device, aligned);
}

void grouped_linear_4bit_simt(const GroupedLinear4bitArgs& args, const Linear4bitPlan& plan, Stream stream) {
  const SimtArgs simt{args.x,
                      args.bias,
                      args.out,
                      args.m,
                      make_view(args.weight),
                      args.n(),
                      args.offsets,
                      static_cast<int>(args.experts)};
  launch_linear_4bit_simt(kOp, simt, args.dtype, plan, stream);
}

void run(const GroupedLinear4bitArgs& args, const Linear4bitPlan& plan, Stream stream) {
  switch (plan.kernel) {
    case Linear4bitKernel::Stream:
      return grouped_linear_4bit_stream(args, plan, stream);
    case Linear4bitKernel::Wgmma:
      return grouped_linear_4bit_wgmma(args, plan.wgmma, stream);
    case Linear4bitKernel::Mma:
      return grouped_linear_4bit_mma(args, plan, stream);
    case Linear4bitKernel::SimtRow:
    case Linear4bitKernel::SimtTile:
      return grouped_linear_4bit_simt(args, plan, stream);
    case Linear4bitKernel::Ahead:
      break;  // no plan of experts
  }
  throw Error(ErrorCode::Unsupported, "[grouped_linear_4bit] plan: got " + to_string(plan) + ", want one of experts");
}

// No kernel adds up splits through memory.
int64_t grouped_linear_4bit_workspace(const Weight4bitArgs&, int64_t, int64_t, DType, Device) { return 0; }

void grouped_linear_4bit(const GroupedLinear4bitArgs& args, Stream stream) {
  const DeviceGuard guard(args.device, kOp);
  run(args, plan_of<grouped_linear_4bit_plan>(problem_of(args)), stream);
}

}  // namespace qbits::cuda
