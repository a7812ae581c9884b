#include "cuda/early_reads.h"
#include "cuda/grouped_linear_4bit_kernels.h"
#include "cuda/launch.h"
#include "cuda/linear_4bit_problem.h"
#include "cuda/linear_4bit_simt.cuh"
#include "cuda/linear_4bit_wgmma_host.h"
#include "cuda/linear_4bit_wgmma_launch.cuh"

namespace qbits::cuda {
namespace {

constexpr std::string_view kOp = "grouped_linear_4bit_grad_x";

}  // namespace

void grouped_linear_4bit_grad_x_simt(const GroupedLinear4bitGradXArgs& args, const Linear4bitPlan& plan,
                                     Stream stream) {
  const SimtArgs simt{args.grad,
                      nullptr,
                      args.out,
                      args.m,
                      make_view(args.weight),
                      args.n(),
                      args.offsets,
                      static_cast<int>(args.experts)};
  launch_linear_4bit_grad_x_simt(kOp, simt, args.dtype, plan, stream);
}

void grouped_linear_4bit_grad_x_wgmma(const GroupedLinear4bitGradXArgs& args, const WgmmaPlan& plan, Stream stream) {
  WgmmaArgs wgmma{};
  wgmma.out = args.out;
  wgmma.m = args.m;
  wgmma.outputs = args.weight.cols;
  wgmma.depth = args.n();
  wgmma.offsets = args.offsets;
  // Past the columns of grad, where the codes are the next expert's, elements come out as 0.
  set_wgmma_x(wgmma, args.grad, args.m, args.n(), args.dtype, plan, true);
  wgmma.experts = static_cast<int>(args.experts);
  set_wgmma_weight(wgmma, args.weight, args.dtype, plan, nullptr, true);
  const EarlyReads reads(stream);
  wgmma.early = reads.allowed(args.weight, {memory_of(args.grad, args.m, wgmma.depth, args.dtype),
                                            memory_of(args.offsets, 1, args.experts + 1, DType::Int32)});
  launch_linear_4bit_wgmma<true, true>(wgmma, args.dtype, plan, stream);
  reads.launched({memory_of(args.out, args.m, wgmma.outputs, args.dtype), {}});
}

void run(const GroupedLinear4bitGradXArgs& args, const Linear4bitPlan& plan, Stream stream) {
  if (plan.kernel == Linear4bitKernel::Wgmma) return grouped_linear_4bit_grad_x_wgmma(args, plan.wgmma, stream);
  if (plan.kernel == Linear4bitKernel::Mma) return grouped_linear_4bit_grad_x_mma(args, plan, stream);
  grouped_linear_4bit_grad_x_simt(args, plan, stream);
}

int64_t grouped_linear_4bit_grad_x_workspace(const Weight4bitArgs&, int64_t, int64_t, DType, Device) { return 0; }

void grouped_linear_4bit_grad_x(const GroupedLinear4bitGradXArgs& args, Stream stream) {
  const DeviceGuard guard(args.device, kOp);
  run(args, plan_of<grouped_linear_4bit_grad_x_plan>(problem_of(args)), stream);
}

}  // namespace qbits::cuda
