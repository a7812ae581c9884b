#include "ops/quantize_4bit.h"

#include "ops/check.h"
#include "qbits/quantize.h"

namespace qbits {

void quantize_4bit(const TensorView& x, const Format& format, int64_t block_size, const TensorView& codes,
                   const TensorView& absmax, Stream stream) {
  constexpr std::string_view op = "quantize_4bit";
  const int64_t n = x.numel();
  check::codebook_4bit(op, format);
  check::block_size(op, "block size", format, block_size);
  check::floating(op, "x", x, x.device);
  check::tensor(op, "codes", codes, {DType::UInt8}, x.device);
  check::numel(op, "codes", codes, codes_size(format, n));
  check::tensor(op, "absmax", absmax, {DType::Float32}, x.device);
  check::numel(op, "absmax", absmax, num_scales(format, 1, n, block_size));
  if (n == 0) return;

  const Quantize4bitArgs args{.x = x.data,
                              .x_dtype = x.dtype,
                              .n = n,
                              .format = &format,
                              .block_size = block_size,
                              .codes = codes.as<uint8_t>(),
                              .absmax = absmax.as<float>(),
                              .device = x.device};
  x.device.type == DeviceType::Cpu ? cpu::quantize_4bit(args) : cuda::quantize_4bit(args, stream);
}

}  // namespace qbits
