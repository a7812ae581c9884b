#include "cuda/launch.h"
#include "cuda/linear_4bit_ahead.h"
#include "cuda/linear_4bit_kernels.h"
#include "cuda/linear_4bit_problem.h"
#include "cuda/linear_4bit_wgmma_host.h"

namespace qbits::cuda {
namespace {

constexpr std::string_view kOp = "linear_4bit";

}  // namespace

Linear4bitProblem problem_of(const Linear4bitArgs& args) {
  const bool aligned = all_on_16_bytes(args.x, args.weight.codes, args.out);
  return problem_of(kOp, args.weight, 0, args.m, args.dtype, args.device, aligned);
}

Linear4bitProblem problem_of(const Linear4bitGradXArgs& args) {
  const bool aligned = all_on_16_bytes(args.grad, args.weight.codes, args.out);
  return problem_of(kOp, args.weight, 0, args.m, args.dtype, args.device, aligned);
}

void run(const Linear4bitArgs& args, const Linear4bitPlan& plan, Stream stream) {
  switch (plan.kernel) {
    case Linear4bitKernel::SimtRow:
    case Linear4bitKernel::SimtTile:
      return linear_4bit_simt(args, plan, stream);
    case Linear4bitKernel::Mma:
      linear_4bit_mma(args, plan, stream);
      break;
    case Linear4bitKernel::Stream:
      linear_4bit_stream(args, plan, stream);
      break;
    case Linear4bitKernel::Wgmma:
      return linear_4bit_wgmma(args, plan.wgmma, stream);
    case Linear4bitKernel::Ahead:
      return linear_4bit_ahead(args, plan.ahead, stream);
  }
  if (plan.workspace_bytes > 0) {
    linear_4bit_add_splits(plan, args.workspace, args.m, args.weight.rows, args.bias, args.dtype, args.out, stream);
  }
}

void run(const Linear4bitGradXArgs& args, const Linear4bitPlan& plan, Stream stream) {
  if (plan.kernel == Linear4bitKernel::Wgmma) return linear_4bit_grad_x_wgmma(args, plan.wgmma, stream);
  if (plan.kernel == Linear4bitKernel::Ahead) return linear_4bit_grad_x_ahead(args, plan.ahead, stream);
  if (plan.kernel != Linear4bitKernel::Mma) return linear_4bit_grad_x_simt(args, plan, stream);
  linear_4bit_grad_x_mma(args, plan, stream);
  if (plan.splits > 1) {
    linear_4bit_add_splits(plan, args.workspace, args.m, args.weight.cols, nullptr, args.dtype, args.out, stream);
  }
}

// Plans without the tensor-core kernel need no workspace, so alignment, unknown here, cannot ask for more.
int64_t linear_4bit_workspace(const Weight4bitArgs& weight, int64_t m, DType x, Device device) {
  return plan_of<linear_4bit_plan>(problem_of(kOp, weight, 0, m, x, device, true)).workspace_bytes;
}

int64_t linear_4bit_grad_x_workspace(const Weight4bitArgs& weight, int64_t m, DType grad, Device device) {
  return plan_of<linear_4bit_grad_x_plan>(problem_of(kOp, weight, 0, m, grad, device, true)).workspace_bytes;
}

void linear_4bit(const Linear4bitArgs& args, Stream stream) {
  const DeviceGuard guard(args.device, kOp);
  run(args, plan_of<linear_4bit_plan>(problem_of(args)), stream);
}

void linear_4bit_grad_x(const Linear4bitGradXArgs& args, Stream stream) {
  const DeviceGuard guard(args.device, kOp);
  run(args, plan_of<linear_4bit_grad_x_plan>(problem_of(args)), stream);
}

}  // namespace qbits::cuda
