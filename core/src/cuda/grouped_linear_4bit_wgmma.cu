#include "cuda/grouped_linear_4bit_kernels.h"
#include "cuda/linear_4bit_wgmma_host.h"
#include "cuda/linear_4bit_wgmma_launch.cuh"

namespace qbits::cuda {

void grouped_linear_4bit_wgmma(const GroupedLinear4bitArgs& args, const WgmmaPlan& plan, Stream stream) {
  WgmmaArgs wgmma{};
  wgmma.x = encode_tile({.data = args.x,
                         .rows = args.m,
                         .columns = args.weight.cols,
                         .row_bytes = args.weight.cols * 2,
                         .box_rows = plan.columns,
                         .box_columns = kWgmmaStepDepth},
                        args.dtype);
  wgmma.bias = args.bias;
  wgmma.out = args.out;
  wgmma.m = args.m;
  wgmma.outputs = args.n();
  wgmma.depth = args.weight.cols;
  wgmma.offsets = args.offsets;
  wgmma.experts = static_cast<int>(args.experts);
  set_wgmma_weight(wgmma, args.weight, args.dtype, plan, nullptr, false);
  launch_linear_4bit_wgmma<false, true>(wgmma, args.dtype, plan, stream);
}

}  // namespace qbits::cuda
