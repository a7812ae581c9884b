#include "cuda/linear_4bit_codebook.cuh"
#include "cuda/linear_4bit_kernels.h"
#include "cuda/linear_4bit_mma.cuh"

namespace qbits::cuda {
namespace {

template <class T, MmaIsa kIsa>
void run_mma(const Linear4bitArgs& args, const Linear4bitPlan& plan, Stream stream) {
  const MmaArgs mma{.x = args.x,
                    .bias = args.bias,
                    .out = args.out,
                    .products = static_cast<float*>(args.workspace),
                    .m = args.m,
                    .split_depth = plan.split_depth,
                    .splits = plan.splits,
                    .stages = plan.stages,
                    .codebook = sums_codebook<T>(args.weight),
                    .weight = make_view(args.weight),
                    .rows = args.weight.rows};
  args.weight.is_affine() ? launch_linear_4bit_mma<T, kIsa, true>(mma, plan, stream)
                          : launch_linear_4bit_mma<T, kIsa, false>(mma, plan, stream);
}

}  // namespace

void linear_4bit_mma(const Linear4bitArgs& args, const Linear4bitPlan& plan, Stream stream) {
  if (plan.isa == MmaIsa::Sm75) return run_mma<__half, MmaIsa::Sm75>(args, plan, stream);
  args.dtype == DType::Float16 ? run_mma<__half, MmaIsa::Sm80>(args, plan, stream)
                               : run_mma<__nv_bfloat16, MmaIsa::Sm80>(args, plan, stream);
}

}  // namespace qbits::cuda
