#include "ops/check.h"
#include "ops/int8.h"
#include "qbits/int8.h"

namespace qbits {
namespace {

int64_t workspace_size(std::string_view op, int64_t rows, int64_t cols, float threshold, Device device) {
  check::int8_threshold(op, threshold);
  check::int8_sizes(op, rows, cols);
  return device.type == DeviceType::Cpu ? cpu::quantize_int8_rowwise_workspace(rows, cols, threshold)
                                        : cuda::quantize_int8_rowwise_workspace(rows, cols, threshold, device);
}

}  // namespace

int64_t quantize_int8_rowwise_workspace(int64_t rows, int64_t cols, float threshold, Device device) {
  return workspace_size("quantize_int8_rowwise_workspace", rows, cols, threshold, device);
}

void quantize_int8_rowwise(const TensorView& x, float threshold, const TensorView& codes, const TensorView& scales,
                           const std::optional<OutlierColumns>& outliers, const TensorView& workspace, Stream stream) {
  constexpr std::string_view op = "quantize_int8_rowwise";
  check::floating(op, "x", x, x.device);
  check::require(
      x.ndim >= 1, ErrorCode::InvalidArgument, op, "x", [&] { return x.describe(); }, "at least 1 dimension");
  const int64_t cols = x.shape[x.ndim - 1];
  const check::Matrix size{.rows = check::rows_of(op, "x", x, cols), .cols = cols};  // rows without elements count, too
  const int64_t bytes = workspace_size(op, size.rows, size.cols, threshold, x.device);
  check::tensor(op, "codes", codes, {DType::Int8}, x.device);
  check::rows(op, "codes", codes, size.rows, size.cols);
  check::tensor(op, "scales", scales, {DType::Float32}, x.device);
  check::numel(op, "scales", scales, size.rows);
  check::require(outliers.has_value() == (threshold > 0), ErrorCode::InvalidArgument, op, "outliers",
                 outliers ? "tensors" : "none",
                 threshold > 0 ? "tensors, for there is a threshold" : "none without a threshold");
  if (outliers) {
    check::tensor(op, "outlier columns", outliers->columns, {DType::Int32}, x.device);
    check::numel(op, "outlier columns", outliers->columns, size.cols);
    check::tensor(op, "outlier count", outliers->count, {DType::Int32}, x.device);
    check::numel(op, "outlier count", outliers->count, 1);
  }
  check::workspace(op, workspace, bytes, x.device);
  if (size.rows == 0 && !outliers) return;  // else there is a count to write

  const QuantizeInt8RowwiseArgs args{.x = x.data,
                                     .x_dtype = x.dtype,
                                     .rows = size.rows,
                                     .cols = size.cols,
                                     .threshold = threshold,
                                     .codes = codes.as<int8_t>(),
                                     .scales = scales.as<float>(),
                                     .outlier_columns = outliers ? outliers->columns.as<int32_t>() : nullptr,
                                     .outlier_count = outliers ? outliers->count.as<int32_t>() : nullptr,
                                     .workspace = workspace.data,
                                     .device = x.device};
  x.device.type == DeviceType::Cpu ? cpu::quantize_int8_rowwise(args) : cuda::quantize_int8_rowwise(args, stream);
}

}  // namespace qbits
