#include "cuda/early_reads.h"
#include "cuda/grouped_linear_4bit_kernels.h"
#include "cuda/linear_4bit_stream.cuh"

namespace qbits::cuda {
namespace {

template <class T>
void run_stream(const GroupedLinear4bitArgs& args, const Linear4bitPlan& plan, Stream stream) {
  StreamArgs kernel_args{.x = args.x, .bias = args.bias, .out = args.out, .m = static_cast<int>(args.m)};
  set_plan(kernel_args, args.n(), plan);
  kernel_args.codebook = stream_codebook<T>(args.weight);
  kernel_args.weight = make_view(args.weight);
  kernel_args.offsets = args.offsets;
  kernel_args.experts = static_cast<int>(args.experts);
  const EarlyReads reads(stream);
  kernel_args.early = reads.allowed(args.weight, {memory_of(args.x, args.m, args.weight.cols, args.dtype),
                                                  memory_of(args.bias, args.experts, args.n(), args.dtype),
                                                  memory_of(args.offsets, 1, args.experts + 1, DType::Int32)});
  args.weight.is_affine() ? launch_linear_4bit_stream<T, true, true>(kernel_args, plan, stream)
                          : launch_linear_4bit_stream<T, false, true>(kernel_args, plan, stream);
  reads.launched({memory_of(args.out, args.m, args.n(), args.dtype), {}});
}

}  // namespace

void grouped_linear_4bit_stream(const GroupedLinear4bitArgs& args, const Linear4bitPlan& plan, Stream stream) {
  args.dtype == DType::Float16 ? run_stream<__half>(args, plan, stream) : run_stream<__nv_bfloat16>(args, plan, stream);
}

}  // namespace qbits::cuda
