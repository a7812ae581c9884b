#include "cuda/linear_4bit_grad_x_mma.cuh"

#include <string>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/linear_4bit_kernels.h"

namespace qbits::cuda {
namespace {

constexpr std::string_view kOp = "linear_4bit_grad_x";

template <class T, MmaIsa kIsa>
void run_mma(const GradXMmaArgs& args, const Linear4bitPlan& plan, Stream stream) {
  const auto kernel =
      plan.tile == 0 ? linear_4bit_grad_x_mma_kernel<T, kIsa, 0> : linear_4bit_grad_x_mma_kernel<T, kIsa, 1>;
  allow_shared_memory(reinterpret_cast<const void*>(kernel), kOp);
  launch(kOp, kernel, {plan.blocks, kMmaThreads, static_cast<size_t>(plan.shared_bytes)}, stream, args);
}

}  // namespace

void linear_4bit_grad_x_mma(const Linear4bitGradXArgs& args, const Linear4bitPlan& plan, Stream stream) {
  launch_linear_4bit_grad_x_mma({.grad = args.grad,
                                 .out = args.out,
                                 .products = static_cast<float*>(args.workspace),
                                 .m = args.m,
                                 .split_depth = plan.split_depth,
                                 .splits = plan.splits,
                                 .weight = make_view(args.weight),
                                 .rows = args.weight.rows},
                                args.dtype, plan, stream);
}

void launch_linear_4bit_grad_x_mma(const GradXMmaArgs& args, DType dtype, const Linear4bitPlan& plan, Stream stream) {
  if (plan.tile < 0 || plan.tile >= kLinear4bitGradXTileCount) {
    throw Error(ErrorCode::Unsupported,
                "[linear_4bit_grad_x] tile: got " + std::to_string(plan.tile) + ", want 0 or 1");
  }
  if (plan.isa == MmaIsa::Sm75) return run_mma<__half, MmaIsa::Sm75>(args, plan, stream);
  dtype == DType::Float16 ? run_mma<__half, MmaIsa::Sm80>(args, plan, stream)
                          : run_mma<__nv_bfloat16, MmaIsa::Sm80>(args, plan, stream);
}

}  // namespace qbits::cuda
