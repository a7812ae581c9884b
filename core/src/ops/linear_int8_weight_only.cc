#include "ops/check.h"
#include "ops/int8.h"
#include "qbits/int8.h"

namespace qbits {
namespace {

int64_t workspace_size(std::string_view op, check::SizeInt8 size, int64_t m, DType x, Device device) {
  check::int8_sizes(op, m, size.k);
  check::int8_sizes(op, m, size.n);
  if (m == 0 || size.n == 0) return 0;
  return device.type == DeviceType::Cpu ? cpu::linear_int8_weight_only_workspace(m, size.n, size.k, x)
                                        : cuda::linear_int8_weight_only_workspace(m, size.n, size.k, x, device);
}

}  // namespace

int64_t linear_int8_weight_only_workspace(const WeightInt8& weight, int64_t m, DType x) {
  constexpr std::string_view op = "linear_int8_weight_only";
  const Device device = weight.codes.device;
  check::require(is_floating(x), ErrorCode::InvalidType, op, "x dtype", name(x), "float32, bfloat16 or float16");
  return workspace_size(op, check::weight_int8(op, weight, device), m, x, device);
}

void linear_int8_weight_only(const TensorView& x, const WeightInt8& weight, const std::optional<TensorView>& bias,
                             const TensorView& out, const TensorView& workspace, Stream stream) {
  constexpr std::string_view op = "linear_int8_weight_only";
  check::floating(op, "x", x, x.device);
  const check::SizeInt8 size = check::weight_int8(op, weight, x.device);
  const int64_t m = check::rows_of(op, "x", x, size.k);
  if (bias) {
    check::tensor(op, "bias", *bias, {x.dtype}, x.device);
    check::numel(op, "bias", *bias, size.n);
  }
  check::tensor(op, "out", out, {x.dtype}, x.device);
  check::rows(op, "out", out, m, size.n);
  check::workspace(op, workspace, workspace_size(op, size, m, x.dtype, x.device), x.device);
  check::int8_scales(op, weight.scales);
  if (m == 0 || size.n == 0) return;

  const LinearInt8WeightOnlyArgs args{.x = x.data,
                                      .dtype = x.dtype,
                                      .m = m,
                                      .n = size.n,
                                      .k = size.k,
                                      .codes = weight.codes.as<const int8_t>(),
                                      .scales = weight.scales.as<const float>(),
                                      .bias = bias ? bias->data : nullptr,
                                      .out = out.data,
                                      .workspace = workspace.data,
                                      .device = x.device};
  x.device.type == DeviceType::Cpu ? cpu::linear_int8_weight_only(args) : cuda::linear_int8_weight_only(args, stream);
}

}  // namespace qbits
