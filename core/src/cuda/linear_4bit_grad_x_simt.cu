#include "cuda/linear_4bit_kernels.h"
#include "cuda/linear_4bit_simt.cuh"

namespace qbits::cuda {

void linear_4bit_grad_x_simt(const Linear4bitGradXArgs& args, const Linear4bitPlan& plan, Stream stream) {
  const SimtArgs simt{args.grad, nullptr, args.out, args.m, make_view(args.weight), args.weight.rows};
  launch_linear_4bit_grad_x_simt("linear_4bit_grad_x", simt, args.dtype, plan, stream);
}

void launch_linear_4bit_grad_x_simt(std::string_view op, const SimtArgs& args, DType dtype, const Linear4bitPlan& plan,
                                    Stream stream) {
  dispatch_float(dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(op, linear_4bit_simt_tile<T, true>, {plan.blocks, kSimtThreads}, stream, args);
  });
}

}  // namespace qbits::cuda
