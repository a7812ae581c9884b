#include "cuda/early_reads.h"
#include "cuda/linear_4bit_wgmma_host.h"
#include "cuda/linear_4bit_wgmma_launch.cuh"

namespace qbits::cuda {

void linear_4bit_grad_x_wgmma(const Linear4bitGradXArgs& args, const WgmmaPlan& plan, Stream stream) {
  WgmmaArgs wgmma{};
  set_wgmma_x(wgmma, args.grad, args.m, args.weight.rows, args.dtype, plan, false);
  wgmma.out = args.out;
  wgmma.m = args.m;
  wgmma.outputs = args.weight.cols;
  wgmma.depth = args.weight.rows;
  set_wgmma_weight(wgmma, args.weight, args.dtype, plan, args.workspace, true);
  const EarlyReads reads(stream);
  wgmma.early = reads.allowed(args.weight, {memory_of(args.grad, args.m, wgmma.depth, args.dtype)});
  launch_linear_4bit_wgmma<true, false>(wgmma, args.dtype, plan, stream);
  reads.launched({memory_of(args.out, args.m, wgmma.outputs, args.dtype),
                  MemoryRange{args.workspace, static_cast<size_t>(plan.workspace_bytes)}});
}

}  // namespace qbits::cuda
