#include "ops/check.h"
#include "ops/int8.h"
#include "qbits/int8.h"

namespace qbits {
namespace {

int64_t workspace_size(std::string_view op, int64_t rows, int64_t cols, Device device) {
  check::int8_sizes(op, rows, cols);
  return device.type == DeviceType::Cpu ? cpu::quantize_int8_colwise_workspace(rows, cols)
                                        : cuda::quantize_int8_colwise_workspace(rows, cols, device);
}

}  // namespace

int64_t quantize_int8_colwise_workspace(int64_t rows, int64_t cols, Device device) {
  return workspace_size("quantize_int8_colwise_workspace", rows, cols, device);
}

void quantize_int8_colwise(const TensorView& x, float threshold, const TensorView& codes, const TensorView& scales,
                           const TensorView& workspace, Stream stream) {
  constexpr std::string_view op = "quantize_int8_colwise";
  check::floating(op, "x", x, x.device);
  check::require(
      x.ndim >= 1, ErrorCode::InvalidArgument, op, "x", [&] { return x.describe(); }, "at least 1 dimension");
  const int64_t cols = x.shape[x.ndim - 1];
  const int64_t rows = check::rows_of(op, "x", x, cols);
  check::int8_threshold(op, threshold);
  const int64_t bytes = workspace_size(op, rows, cols, x.device);
  check::tensor(op, "codes", codes, {DType::Int8}, x.device);
  check::rows(op, "codes", codes, rows, cols);
  check::tensor(op, "scales", scales, {DType::Float32}, x.device);
  check::numel(op, "scales", scales, cols);
  check::workspace(op, workspace, bytes, x.device);
  if (cols == 0) return;  // without rows there are scales to write

  const QuantizeInt8ColwiseArgs args{.x = x.data,
                                     .x_dtype = x.dtype,
                                     .rows = rows,
                                     .cols = cols,
                                     .threshold = threshold,
                                     .codes = codes.as<int8_t>(),
                                     .scales = scales.as<float>(),
                                     .workspace = workspace.data,
                                     .device = x.device};
  x.device.type == DeviceType::Cpu ? cpu::quantize_int8_colwise(args) : cuda::quantize_int8_colwise(args, stream);
}

}  // namespace qbits
