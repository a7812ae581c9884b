#include "ops/dequantize_4bit.h"

#include "ops/check.h"
#include "qbits/quantize.h"

namespace qbits {

void dequantize_4bit(const TensorView& codes, const Absmax& absmax, const Format& format, int64_t block_size,
                     const TensorView& out, Stream stream) {
  constexpr std::string_view op = "dequantize_4bit";
  const int64_t n = out.numel();
  check::codebook_4bit(op, format);
  check::block_size(op, "block size", format, block_size);
  check::floating(op, "out", out, codes.device);
  check::tensor(op, "codes", codes, {DType::UInt8}, codes.device);
  check::numel(op, "codes", codes, codes_size(format, n));
  const AbsmaxArgs scales = check::absmax(op, absmax, num_scales(format, 1, n, block_size), codes.device);
  if (n == 0) return;

  const Dequantize4bitArgs args{.codes = codes.as<const uint8_t>(),
                                .absmax = scales,
                                .format = &format,
                                .block_size = block_size,
                                .n = n,
                                .out = out.data,
                                .out_dtype = out.dtype,
                                .device = codes.device};
  codes.device.type == DeviceType::Cpu ? cpu::dequantize_4bit(args) : cuda::dequantize_4bit(args, stream);
}

}  // namespace qbits
