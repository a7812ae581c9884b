#include "cuda/linear_int8_mma.cuh"

#include "cuda/launch.h"

namespace qbits::cuda {

void linear_int8_mma(const LinearInt8Args& args, const QuantizedX& x, const LinearInt8Plan& plan, Stream stream) {
  const LinearInt8MmaArgs kernel_args{.operands = {.x = x.codes,
                                                   .weight = args.codes,
                                                   .x_pitch = linear_int8_pitch(args.k),
                                                   .weight_pitch = args.k,
                                                   .m = args.m,
                                                   .n = args.n,
                                                   .k = args.k,
                                                   .stages = plan.mma.stages},
                                      .outliers = {.x = args.x, .columns = x.columns, .count = x.count},
                                      .x_scales = x.scales,
                                      .scales = args.scales,
                                      .bias = args.bias,
                                      .out = args.out,
                                      .whole_out = args.n * itemsize(args.dtype) % 16 == 0 && is_aligned(args.out, 16)};
  const bool whole_rows = args.k % 16 == 0 && is_aligned(args.codes, 16);
  dispatch_float(args.dtype, "linear_int8", [&](auto tag) {
    using T = typename decltype(tag)::type;
    plan.mma.isa == MmaIsa::Sm75 ? launch_linear_int8_mma<T, MmaIsa::Sm75>(kernel_args, whole_rows, plan.mma, stream)
                                 : launch_linear_int8_mma<T, MmaIsa::Sm80>(kernel_args, whole_rows, plan.mma, stream);
  });
}

}  // namespace qbits::cuda
