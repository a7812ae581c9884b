#include "cuda/linear_4bit_kernels.h"
#include "cuda/linear_4bit_simt.cuh"

namespace qbits::cuda {

void linear_4bit_grad_x_simt(const Linear4bitGradXArgs& args, const Linear4bitPlan& plan, Stream stream) {
  constexpr std::string_view kOp = "linear_4bit_grad_x";
  const SimtArgs simt{args.grad, nullptr, args.out, args.m, make_view(args.weight)};
  dispatch_float(args.dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(kOp, linear_4bit_simt_tile<T, true>, {plan.blocks, kSimtThreads}, stream, simt);
  });
}

}  // namespace qbits::cuda
