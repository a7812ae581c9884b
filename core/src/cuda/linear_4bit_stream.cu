#include "cuda/early_reads.h"
#include "cuda/linear_4bit_kernels.h"
#include "cuda/linear_4bit_stream.cuh"

namespace qbits::cuda {
namespace {

template <class T>
void run_stream(const Linear4bitArgs& args, const Linear4bitPlan& plan, Stream stream) {
  StreamArgs kernel_args{.x = args.x, .bias = args.bias, .out = args.out, .m = static_cast<int>(args.m)};
  set_plan(kernel_args, args.weight.rows, plan);
  kernel_args.codebook = stream_codebook<T>(args.weight);
  kernel_args.weight = make_view(args.weight);
  const EarlyReads reads(stream);
  kernel_args.early = reads.allowed(args.weight, {memory_of(args.x, args.m, args.weight.cols, args.dtype),
                                                  memory_of(args.bias, 1, args.weight.rows, args.dtype)});
  args.weight.is_affine() ? launch_linear_4bit_stream<T, true, false>(kernel_args, plan, stream)
                          : launch_linear_4bit_stream<T, false, false>(kernel_args, plan, stream);
  reads.launched({memory_of(args.out, args.m, args.weight.rows, args.dtype), {}});
}

}  // namespace

void linear_4bit_stream(const Linear4bitArgs& args, const Linear4bitPlan& plan, Stream stream) {
  args.dtype == DType::Float16 ? run_stream<__half>(args, plan, stream) : run_stream<__nv_bfloat16>(args, plan, stream);
}

}  // namespace qbits::cuda
