#include <array>
#include <cstddef>
#include <utility>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/linear_4bit_ahead.h"
#include "cuda/linear_4bit_kernels.h"
#include "cuda/linear_4bit_wgmma_host.h"

namespace qbits::cuda {
namespace {

constexpr std::string_view kOp = "linear_4bit";

Linear4bitProblem problem(const Weight4bitArgs& weight, int64_t m, DType dtype, Device device, bool aligned) {
  const DeviceFacts& facts = device_facts(device, kOp);
  return {.coding = weight.format->coding,
          .block_size = weight.block_size,
          .n = weight.rows,
          .k = weight.cols,
          .m = m,
          .dtype = dtype,
          .nested = !weight.is_affine() && weight.absmax.is_nested(),
          .scales_as_x = weight.is_affine() && weight.scale_dtype == dtype,
          .aligned = aligned,
          .compute_capability = facts.compute_capability,
          .sm_count = facts.sm_count};
}

// Choosing takes longer than a launch, and a call needs its plan for the workspace and for the run: each thread keeps
// the plans of the problems it met last.
template <Linear4bitPlan (*kChoose)(const Linear4bitProblem&)>
const Linear4bitPlan& plan_of(const Linear4bitProblem& p) {
  constexpr size_t kKept = 64;
  thread_local std::array<std::pair<Linear4bitProblem, Linear4bitPlan>, kKept> kept;
  const auto size = [](int64_t s) { return static_cast<uint64_t>(s); };  // its products may wrap around
  const uint64_t mixed = (size(p.n) * 31 + size(p.k) * 17 + size(p.m) * 7 + p.aligned) * 0x9e3779b97f4a7c15;
  auto& [problem, plan] = kept[mixed >> 58];
  if (problem != p) {
    plan = kChoose(p);
    problem = p;
  }
  return plan;
}

}  // namespace

Linear4bitProblem problem_of(const Linear4bitArgs& args) {
  const bool aligned = all_on_16_bytes(args.x, args.weight.codes, args.out);
  return problem(args.weight, args.m, args.dtype, args.device, aligned);
}

Linear4bitProblem problem_of(const Linear4bitGradXArgs& args) {
  const bool aligned = all_on_16_bytes(args.grad, args.weight.codes, args.out);
  return problem(args.weight, args.m, args.dtype, args.device, aligned);
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
  return plan_of<linear_4bit_plan>(problem(weight, m, x, device, true)).workspace_bytes;
}

int64_t linear_4bit_grad_x_workspace(const Weight4bitArgs& weight, int64_t m, DType grad, Device device) {
  return plan_of<linear_4bit_grad_x_plan>(problem(weight, m, grad, device, true)).workspace_bytes;
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
