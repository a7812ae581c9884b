#include "ops/absmax.h"
#include "ops/check.h"
#include "qbits/quantize.h"

namespace qbits {

void dequantize_absmax(const Absmax& absmax, const TensorView& out, Stream stream) {
  constexpr std::string_view op = "dequantize_absmax";
  const Device device = absmax.values.device;
  const int64_t n = out.numel();
  check::require(absmax.nested_absmax.has_value(), ErrorCode::InvalidArgument, op, "absmax", "plain scales",
                 "double-quantized ones: nested_absmax, nested_code and offset");
  check::tensor(op, "out", out, {DType::Float32}, device);
  const AbsmaxArgs scales = check::absmax(op, absmax, n, device);
  if (n == 0) return;

  const DequantizeAbsmaxArgs args{.absmax = scales, .n = n, .out = out.as<float>(), .device = device};
  device.type == DeviceType::Cpu ? cpu::dequantize_absmax(args) : cuda::dequantize_absmax(args, stream);
}

}  // namespace qbits
