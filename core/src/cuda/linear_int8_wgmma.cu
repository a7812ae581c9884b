#include "cuda/linear_4bit_wgmma_host.h"
#include "cuda/linear_int8_wgmma.cuh"

namespace qbits::cuda {

constexpr int64_t kBurstBytes = 2 << 20;  // of all blocks
constexpr int64_t kBytesPerClock = 20;    // a multiprocessor's share of what memory delivers, and a little more

void linear_int8_wgmma(const LinearInt8Args& args, const QuantizedX& x, const LinearInt8Plan& plan, Stream stream) {
  constexpr int kDepth = LinearInt8Wgmma::kDepth;
  const int sm_count = device_facts(args.device, "linear_int8").sm_count;
  Int8WgmmaArgs kernel_args{};
  const MatrixMap codes{.data = x.codes,
                        .rows = args.m,
                        .columns = args.k,
                        .row_bytes = linear_int8_pitch(args.k),
                        .box_rows = plan.columns,
                        .box_columns = kDepth};
  kernel_args.x = encode_tiles(codes, false, encode_codes);
  kernel_args.weight = encode_codes({.data = args.codes,
                                     .rows = args.n,
                                     .columns = args.k,
                                     .row_bytes = args.k,
                                     .box_rows = plan.rows,
                                     .box_columns = kDepth});
  if (x.values != nullptr && args.dtype != DType::Float32 && !plan.lists) {
    kernel_args.outliers = encode_tile({.data = x.values,
                                        .rows = args.m,
                                        .columns = kOutlierValues,
                                        .row_bytes = kOutlierValues * 2,
                                        .box_rows = plan.columns,
                                        .box_columns = kOutlierValues},
                                       args.dtype);
  }
  kernel_args.x_scales = x.scales;
  kernel_args.scales = args.scales;
  kernel_args.bias = args.bias;
  kernel_args.out = args.out;
  kernel_args.m = static_cast<int>(args.m);
  kernel_args.n = static_cast<int>(args.n);
  kernel_args.k = static_cast<int>(args.k);
  kernel_args.stages = static_cast<int>(ceil_div(args.k, int64_t{kDepth}));
  kernel_args.tiles = static_cast<int>(plan.tiles);
  kernel_args.tiles_m = static_cast<int>(ceil_div(args.m, int64_t{plan.columns}));
  kernel_args.splits = plan.splits;
  const int64_t stage_bytes = int64_t{plan.rows} * kDepth * std::min<int64_t>(plan.blocks, sm_count);
  kernel_args.burst = static_cast<int>(kBurstBytes / stage_bytes);
  kernel_args.pace = static_cast<int>(stage_bytes / (sm_count * kBytesPerClock));
  kernel_args.x_values = args.x;
  kernel_args.codes = args.codes;
  kernel_args.columns = x.columns;
  kernel_args.count = x.count;
  kernel_args.listing = {.x_codes = x.codes, .marks = x.marks};
  dispatch_float(args.dtype, "linear_int8",
                 [&](auto tag) { launch_linear_int8_wgmma<typename decltype(tag)::type>(kernel_args, plan, stream); });
}

}  // namespace qbits::cuda
