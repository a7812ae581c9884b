#include "ops/check.h"
#include "ops/int8.h"
#include "qbits/int8.h"

namespace qbits {

void dequantize_int8_rowwise(const TensorView& codes, const TensorView& scales, const TensorView& out, Stream stream) {
  constexpr std::string_view op = "dequantize_int8_rowwise";
  check::tensor(op, "codes", codes, {DType::Int8}, codes.device);
  check::require(
      codes.ndim >= 1, ErrorCode::InvalidArgument, op, "codes", [&] { return codes.describe(); },
      "at least 1 dimension");
  const int64_t cols = codes.shape[codes.ndim - 1];
  const check::Matrix size{.rows = check::rows_of(op, "codes", codes, cols), .cols = cols};
  check::tensor(op, "scales", scales, {DType::Float32}, codes.device);
  check::numel(op, "scales", scales, size.rows);
  check::floating(op, "out", out, codes.device);
  check::rows(op, "out", out, size.rows, size.cols);
  if (size.rows == 0 || size.cols == 0) return;

  const DequantizeInt8RowwiseArgs args{.codes = codes.as<const int8_t>(),
                                       .scales = scales.as<const float>(),
                                       .rows = size.rows,
                                       .cols = size.cols,
                                       .out = out.data,
                                       .out_dtype = out.dtype,
                                       .device = codes.device};
  codes.device.type == DeviceType::Cpu ? cpu::dequantize_int8_rowwise(args)
                                       : cuda::dequantize_int8_rowwise(args, stream);
}

}  // namespace qbits
