#include "cuda/linear_4bit_wgmma_host.h"
#include "cuda/linear_4bit_wgmma_launch.cuh"

namespace qbits::cuda {

void linear_4bit_grad_x_wgmma(const Linear4bitGradXArgs& args, const WgmmaPlan& plan, Stream stream) {
  WgmmaArgs wgmma{};
  wgmma.x = encode_tile({.data = args.grad,
                         .rows = args.m,
                         .columns = args.weight.rows,
                         .row_bytes = args.weight.rows * 2,
                         .box_rows = plan.columns,
                         .box_columns = kWgmmaStepDepth},
                        args.dtype);
  wgmma.out = args.out;
  wgmma.m = args.m;
  wgmma.outputs = args.weight.cols;
  wgmma.depth = args.weight.rows;
  set_wgmma_weight(wgmma, args.weight, args.dtype, plan, args.workspace, true);
  launch_linear_4bit_wgmma<true, false>(wgmma, args.dtype, plan, stream);
}

}  // namespace qbits::cuda
