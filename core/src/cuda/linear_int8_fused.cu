#include <bit>

#include "cuda/linear_4bit_wgmma_host.h"
#include "cuda/linear_int8_fused.cuh"

namespace qbits::cuda {
namespace {

template <class T>
void run(const LinearInt8Args& args, const LinearInt8Plan& plan, Stream stream) {
  const Int8FusedArgs<T> kernel_args{
      .weight = encode_codes({.data = args.codes,
                              .rows = args.n,
                              .columns = args.k,
                              .row_bytes = args.k,
                              .box_rows = LinearInt8Wgmma::kRows,
                              .box_columns = LinearInt8Wgmma::kDepth}),
      .x = static_cast<const T*>(args.x),
      .codes = args.codes,
      .scales = args.scales,
      .bias = static_cast<const T*>(args.bias),
      .out = static_cast<T*>(args.out),
      .threshold = rowwise::threshold_of<T>(args.threshold),
      .m = static_cast<int>(args.m),
      .n = static_cast<int>(args.n),
      .k = static_cast<int>(args.k),
      .stages = static_cast<int>(ceil_div(args.k, int64_t{LinearInt8Wgmma::kDepth})),
      .splits = plan.splits,
      .log_pairs = static_cast<int>(std::bit_width(static_cast<uint64_t>(args.m - 1) / 2))};
  launch_linear_int8_fused<T>(kernel_args, args.threshold > 0, plan, stream);
}

}  // namespace

void linear_int8_fused(const LinearInt8Args& args, const LinearInt8Plan& plan, Stream stream) {
  if (args.dtype == DType::Float16) return run<__half>(args, plan, stream);
  if (args.dtype == DType::BFloat16) return run<__nv_bfloat16>(args, plan, stream);
  throw Error(ErrorCode::Unsupported, "[linear_int8] plan: got " + to_string(plan) + ", want one for float32");
}

}  // namespace qbits::cuda
