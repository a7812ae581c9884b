#include <cmath>

#include "ops/check.h"
#include "ops/int8.h"
#include "qbits/int8.h"

namespace qbits {
namespace {

struct Size {
  int64_t n;
  int64_t k;
};

Size weight_size(std::string_view op, const WeightInt8& weight, Device device) {
  const TensorView& codes = weight.codes;
  check::tensor(op, "weight codes", codes, {DType::Int8}, device);
  check::require(
      codes.ndim == 2, ErrorCode::InvalidArgument, op, "weight codes", [&] { return codes.describe(); },
      "2 dimensions");
  check::tensor(op, "weight scales", weight.scales, {DType::Float32}, device);
  check::numel(op, "weight scales", weight.scales, codes.shape[0]);
  return {codes.shape[0], codes.shape[1]};
}

int64_t workspace_size(std::string_view op, Size size, int64_t m, DType x, float threshold, Device device) {
  check::int8_threshold(op, threshold);
  check::int8_sizes(op, m, size.k);
  check::int8_sizes(op, m, size.n);
  if (m == 0 || size.n == 0) return 0;
  return device.type == DeviceType::Cpu ? cpu::linear_int8_workspace(m, size.n, size.k, x, threshold)
                                        : cuda::linear_int8_workspace(m, size.n, size.k, x, threshold, device);
}

void check_scales(std::string_view op, const TensorView& scales) {
  const float* const values = scales.as<const float>();
  for (int64_t i = 0; i < scales.numel(); ++i) {
    check::require(
        values[i] >= 0, ErrorCode::InvalidArgument, op, "weight scales",
        [&] { return std::to_string(values[i]) + " at " + std::to_string(i); }, "numbers of at least 0");
  }
}

}  // namespace

int64_t linear_int8_workspace(const WeightInt8& weight, int64_t m, DType x, float threshold) {
  constexpr std::string_view op = "linear_int8";
  const Device device = weight.codes.device;
  check::require(is_floating(x), ErrorCode::InvalidType, op, "x dtype", name(x), "float32, bfloat16 or float16");
  return workspace_size(op, weight_size(op, weight, device), m, x, threshold, device);
}

void linear_int8(const TensorView& x, const WeightInt8& weight, const std::optional<TensorView>& bias, float threshold,
                 const TensorView& out, const TensorView& workspace, Stream stream) {
  constexpr std::string_view op = "linear_int8";
  check::floating(op, "x", x, x.device);
  const Size size = weight_size(op, weight, x.device);
  const int64_t m = check::rows_of(op, "x", x, size.k);
  if (bias) {
    check::tensor(op, "bias", *bias, {x.dtype}, x.device);
    check::numel(op, "bias", *bias, size.n);
  }
  check::tensor(op, "out", out, {x.dtype}, x.device);
  check::rows(op, "out", out, m, size.n);
  check::workspace(op, workspace, workspace_size(op, size, m, x.dtype, threshold, x.device), x.device);
  if (x.device.type == DeviceType::Cpu) check_scales(op, weight.scales);
  if (m == 0 || size.n == 0) return;

  const LinearInt8Args args{.x = x.data,
                            .dtype = x.dtype,
                            .m = m,
                            .n = size.n,
                            .k = size.k,
                            .codes = weight.codes.as<const int8_t>(),
                            .scales = weight.scales.as<const float>(),
                            .bias = bias ? bias->data : nullptr,
                            .threshold = threshold,
                            .out = out.data,
                            .workspace = workspace.data,
                            .device = x.device};
  x.device.type == DeviceType::Cpu ? cpu::linear_int8(args) : cuda::linear_int8(args, stream);
}

}  // namespace qbits
