#include "cuda/early_reads.h"
#include "cuda/grouped_linear_4bit_kernels.h"
#include "cuda/linear_4bit_wgmma_host.h"
#include "cuda/linear_4bit_wgmma_launch.cuh"

namespace qbits::cuda {

void grouped_linear_4bit_wgmma(const GroupedLinear4bitArgs& args, const WgmmaPlan& plan, Stream stream) {
  WgmmaArgs wgmma{};
  wgmma.bias = args.bias;
  wgmma.out = args.out;
  wgmma.m = args.m;
  wgmma.outputs = args.n();
  wgmma.depth = args.weight.cols;
  wgmma.offsets = args.offsets;
  set_wgmma_x(wgmma, args.x, args.m, args.weight.cols, args.dtype, plan, true);
  wgmma.experts = static_cast<int>(args.experts);
  set_wgmma_weight(wgmma, args.weight, args.dtype, plan, nullptr, false);
  const EarlyReads reads(stream);
  wgmma.early = reads.allowed(args.weight, {memory_of(args.x, args.m, wgmma.depth, args.dtype),
                                            memory_of(args.bias, args.experts, args.n(), args.dtype),
                                            memory_of(args.offsets, 1, args.experts + 1, DType::Int32)});
  launch_linear_4bit_wgmma<false, true>(wgmma, args.dtype, plan, stream);
  reads.launched({memory_of(args.out, args.m, wgmma.outputs, args.dtype), {}});
}

}  // namespace qbits::cuda
