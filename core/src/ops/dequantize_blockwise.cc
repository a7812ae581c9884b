#include "ops/blockwise.h"
#include "ops/check.h"
#include "qbits/quantize.h"

namespace qbits {

void dequantize_blockwise(const TensorView& codes, const TensorView& absmax, const TensorView& code, int64_t block_size,
                          const TensorView& out, Stream stream) {
  constexpr std::string_view op = "dequantize_blockwise";
  const int64_t n = out.numel();
  check::code_block_size(op, block_size);
  check::floating(op, "out", out, codes.device);
  check::tensor(op, "codes", codes, {DType::UInt8}, codes.device);
  check::numel(op, "codes", codes, n);
  check::tensor(op, "absmax", absmax, {DType::Float32}, codes.device);
  check::numel(op, "absmax", absmax, n / block_size + (n % block_size != 0));
  check::code256(op, "code", code, codes.device);
  if (n == 0) return;

  const DequantizeBlockwiseArgs args{.codes = codes.as<const uint8_t>(),
                                     .absmax = absmax.as<const float>(),
                                     .code = code.as<const float>(),
                                     .block_size = block_size,
                                     .n = n,
                                     .out = out.data,
                                     .out_dtype = out.dtype,
                                     .device = codes.device};
  codes.device.type == DeviceType::Cpu ? cpu::dequantize_blockwise(args) : cuda::dequantize_blockwise(args, stream);
}

}  // namespace qbits
