#include "cuda/linear_4bit_ahead.h"

#include "cuda/linear_4bit_ahead_launch.cuh"
#include "cuda/linear_4bit_wgmma_host.h"

namespace qbits::cuda {
namespace {

constexpr std::string_view kOp = "linear_4bit";

// A product of x [m, depth] with a weight, or with the transposed one.
struct Product {
  const void* x;
  DType dtype;
  int64_t m;
  const Weight4bitArgs& weight;
  const void* bias;
  void* out;
  void* workspace;
};

// Only rows that begin at 16 bytes have a map.
CUtensorMap outs(const Product& product, int64_t outputs) {
  if (outputs % 8 != 0) return {};
  return encode_tile({.data = product.out,
                      .rows = product.m,
                      .columns = outputs,
                      .row_bytes = outputs * 2,
                      .box_rows = kAheadSlabRows,
                      .box_columns = 64},
                     product.dtype);
}

template <bool kTransposed>
void run(const Product& product, const AheadPlan& plan, Stream stream) {
  const Weight4bitArgs& weight = product.weight;
  const int64_t outputs = kTransposed ? weight.cols : weight.rows;
  const int64_t depth = kTransposed ? weight.rows : weight.cols;
  const auto misaligned = reinterpret_cast<uintptr_t>(product.workspace) % Ahead::kAlignment;
  uint8_t* const units =
      static_cast<uint8_t*>(product.workspace) + (Ahead::kAlignment - misaligned) % Ahead::kAlignment;
  uint8_t* const counters = units + int64_t{plan.units} * Ahead::kUnitBytes;
  const int clusters = static_cast<int>(plan.blocks / Ahead::kBlocks);
  const AheadArgs args{
      .x = encode_tile({.data = product.x,
                        .rows = product.m,
                        .columns = depth,
                        .row_bytes = depth * 2,
                        .box_rows = plan.columns / Ahead::kBlocks,
                        .box_columns = Ahead::kStageDepth},
                       product.dtype),
      .outs = outs(product, outputs),
      .bias = product.bias,
      .out = product.out,
      .units = units,
      .ready = reinterpret_cast<int*>(counters + clusters * Ahead::kProgressBytes),
      .progress = reinterpret_cast<int*>(counters),
      .m = product.m,
      .outputs = outputs,
      .depth = depth,
      .ring = plan.units,
      .schedule = AheadSchedule(clusters, static_cast<int>(ceil_div(outputs, Ahead::kUnitOutputs)),
                                static_cast<int>(ceil_div(depth, Ahead::kUnitDepth)),
                                static_cast<int>(ceil_div(product.m, plan.columns)), plan.group),
      .weight = make_view(weight),
  };
  check(cudaMemsetAsync(counters, 0,
                        static_cast<size_t>(clusters * Ahead::kProgressBytes + plan.units * Ahead::kReadyBytes),
                        native(stream)),
        kOp);
  dispatch_bool(weight.is_affine(), [&](auto affine) {
    constexpr bool kAffine = decltype(affine)::value;
    if (product.dtype == DType::Float16) {
      launch_ahead_tile<__half, kAffine, kTransposed>(args, plan, stream);
    } else {
      launch_ahead_tile<__nv_bfloat16, kAffine, kTransposed>(args, plan, stream);
    }
  });
}

}  // namespace

void linear_4bit_ahead(const Linear4bitArgs& args, const AheadPlan& plan, Stream stream) {
  run<false>({args.x, args.dtype, args.m, args.weight, args.bias, args.out, args.workspace}, plan, stream);
}

void linear_4bit_grad_x_ahead(const Linear4bitGradXArgs& args, const AheadPlan& plan, Stream stream) {
  run<true>({args.grad, args.dtype, args.m, args.weight, nullptr, args.out, args.workspace}, plan, stream);
}

}  // namespace qbits::cuda
