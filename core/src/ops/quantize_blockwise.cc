#include "ops/blockwise.h"
#include "ops/check.h"
#include "qbits/quantize.h"

namespace qbits {

void quantize_blockwise(const TensorView& x, const TensorView& code, int64_t block_size, const TensorView& codes,
                        const TensorView& absmax, Stream stream) {
  constexpr std::string_view op = "quantize_blockwise";
  const int64_t n = x.numel();
  check::code_block_size(op, block_size);
  check::floating(op, "x", x, x.device);
  check::code256(op, "code", code, x.device);
  check::tensor(op, "codes", codes, {DType::UInt8}, x.device);
  check::numel(op, "codes", codes, n);
  check::tensor(op, "absmax", absmax, {DType::Float32}, x.device);
  check::numel(op, "absmax", absmax, n / block_size + (n % block_size != 0));
  check::ascending(op, "code", code);
  if (n == 0) return;

  const QuantizeBlockwiseArgs args{.x = x.data,
                                   .x_dtype = x.dtype,
                                   .n = n,
                                   .code = code.as<const float>(),
                                   .block_size = block_size,
                                   .codes = codes.as<uint8_t>(),
                                   .absmax = absmax.as<float>(),
                                   .device = x.device};
  x.device.type == DeviceType::Cpu ? cpu::quantize_blockwise(args) : cuda::quantize_blockwise(args, stream);
}

}  // namespace qbits
