#include "ops/check.h"
#include "ops/int8.h"
#include "qbits/int8.h"

namespace qbits {

void dequantize_int8_product(const TensorView& dots, const TensorView& row_scales, const TensorView& column_scales,
                             const std::optional<TensorView>& bias, const TensorView& out, Stream stream) {
  constexpr std::string_view op = "dequantize_int8_product";
  check::tensor(op, "dots", dots, {DType::Int32}, dots.device);
  check::require(
      dots.ndim >= 1, ErrorCode::InvalidArgument, op, "dots", [&] { return dots.describe(); }, "at least 1 dimension");
  const int64_t n = dots.shape[dots.ndim - 1];
  const int64_t m = check::rows_of(op, "dots", dots, n);
  check::tensor(op, "row_scales", row_scales, {DType::Float32}, dots.device);
  check::numel(op, "row_scales", row_scales, m);
  check::tensor(op, "column_scales", column_scales, {DType::Float32}, dots.device);
  check::numel(op, "column_scales", column_scales, n);
  check::floating(op, "out", out, dots.device);
  check::rows(op, "out", out, m, n);
  if (bias) {
    check::tensor(op, "bias", *bias, {out.dtype}, dots.device);
    check::numel(op, "bias", *bias, n);
  }
  if (m == 0 || n == 0) return;

  const DequantizeInt8ProductArgs args{.dots = dots.as<const int32_t>(),
                                       .row_scales = row_scales.as<const float>(),
                                       .column_scales = column_scales.as<const float>(),
                                       .bias = bias ? bias->data : nullptr,
                                       .m = m,
                                       .n = n,
                                       .out = out.data,
                                       .dtype = out.dtype,
                                       .device = dots.device};
  dots.device.type == DeviceType::Cpu ? cpu::dequantize_int8_product(args)
                                      : cuda::dequantize_int8_product(args, stream);
}

}  // namespace qbits
