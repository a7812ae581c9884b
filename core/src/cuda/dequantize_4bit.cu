#include "ops/dequantize_4bit.h"

#include "cuda/dequantize_blocks.cuh"

namespace qbits::cuda {

void dequantize_4bit(const Dequantize4bitArgs& args, Stream stream) {
  constexpr std::string_view op = "dequantize_4bit";
  const DeviceGuard guard(args.device, op);
  dispatch_float(args.out_dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_bool(args.absmax.is_nested(), [&](auto nested) {
      launch_dequantize_blocks(op, make_decoder<nested>(*args.format, args.absmax), args.codes, args.block_size, args.n,
                               static_cast<T*>(args.out), stream);
    });
  });
}

}  // namespace qbits::cuda
