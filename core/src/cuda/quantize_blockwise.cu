#include "cuda/codebook256.cuh"
#include "ops/blockwise.h"

namespace qbits::cuda {

void quantize_blockwise(const QuantizeBlockwiseArgs& args, Stream stream) {
  constexpr std::string_view op = "quantize_blockwise";
  const DeviceGuard guard(args.device, op);
  const Codebook256Quantizer quantizer{.code = args.code, .codes = args.codes, .absmax = args.absmax};
  dispatch_float(args.x_dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_bool(is_aligned(args.x, 16) && is_aligned(args.codes, sizeof(PackedRun<8>)), [&](auto aligned) {
      launch_quantize_blocks(op, TensorInput<T, aligned>{static_cast<const T*>(args.x)}, args.n, args.block_size,
                             quantizer, stream);
    });
  });
}

}  // namespace qbits::cuda
