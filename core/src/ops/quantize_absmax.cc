#include "ops/absmax.h"
#include "ops/check.h"
#include "qbits/quantize.h"

namespace qbits {

void quantize_absmax(const TensorView& absmax, const TensorView& nested_code, const TensorView& values,
                     const TensorView& nested_absmax, const TensorView& offset, Stream stream) {
  constexpr std::string_view op = "quantize_absmax";
  const int64_t n = absmax.numel();
  check::tensor(op, "absmax", absmax, {DType::Float32}, absmax.device);
  check::code256(op, "nested_code", nested_code, absmax.device);
  check::tensor(op, "values", values, {DType::UInt8}, absmax.device);
  check::numel(op, "values", values, n);
  check::tensor(op, "nested_absmax", nested_absmax, {DType::Float32}, absmax.device);
  check::numel(op, "nested_absmax", nested_absmax, n / kNestedBlockSize + (n % kNestedBlockSize != 0));
  check::tensor(op, "offset", offset, {DType::Float32}, absmax.device);
  check::numel(op, "offset", offset, 1);
  check::ascending(op, "nested_code", nested_code);
  if (n == 0) return;

  const QuantizeAbsmaxArgs args{.absmax = absmax.as<const float>(),
                                .n = n,
                                .nested_code = nested_code.as<const float>(),
                                .values = values.as<uint8_t>(),
                                .nested_absmax = nested_absmax.as<float>(),
                                .offset = offset.as<float>(),
                                .device = absmax.device};
  absmax.device.type == DeviceType::Cpu ? cpu::quantize_absmax(args) : cuda::quantize_absmax(args, stream);
}

}  // namespace qbits
