#include "cuda/dequantize_blocks.cuh"
#include "ops/blockwise.h"

namespace qbits::cuda {

void dequantize_blockwise(const DequantizeBlockwiseArgs& args, Stream stream) {
  constexpr std::string_view op = "dequantize_blockwise";
  const DeviceGuard guard(args.device, op);
  dispatch_float(args.out_dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch_dequantize_blocks(op, Codebook256Decoder{args.code, args.absmax}, args.codes, args.block_size, args.n,
                             static_cast<T*>(args.out), stream);
  });
}

}  // namespace qbits::cuda
