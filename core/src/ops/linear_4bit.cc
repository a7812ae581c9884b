#include "ops/linear_4bit.h"

#include "ops/check.h"
#include "qbits/linear.h"

namespace qbits {
namespace {

int64_t workspace_size(std::string_view op, const Weight4bitArgs& w, int64_t m, DType x, Device device) {
  int64_t product = 0;
  check::require(
      m >= 0 && !__builtin_mul_overflow(m, w.rows + w.cols, &product) && product < int64_t{1} << 59,
      ErrorCode::InvalidArgument, op, "m", [&] { return std::to_string(m); }, "a size of at least 0 that fits");
  if (m == 0 || w.rows == 0) return 0;
  return device.type == DeviceType::Cpu ? cpu::linear_4bit_workspace(w, m, x)
                                        : cuda::linear_4bit_workspace(w, m, x, device);
}

}  // namespace

int64_t linear_4bit_workspace(const Weight4bit& weight, int64_t m, DType x) {
  constexpr std::string_view op = "linear_4bit";
  const Device device = weight.codes.device;
  const Weight4bitArgs w = check::weight_4bit(op, weight, device);
  check::require(is_floating(x), ErrorCode::InvalidType, op, "x dtype", name(x), "float32, bfloat16 or float16");
  return workspace_size(op, w, m, x, device);
}

void linear_4bit(const TensorView& x, const Weight4bit& weight, const std::optional<TensorView>& bias,
                 const TensorView& out, const TensorView& workspace, Stream stream) {
  constexpr std::string_view op = "linear_4bit";
  check::floating(op, "x", x, x.device);
  const Weight4bitArgs w = check::weight_4bit(op, weight, x.device);
  const int64_t m = check::rows_of(op, "x", x, w.cols);
  if (bias) {
    check::tensor(op, "bias", *bias, {x.dtype}, x.device);
    check::numel(op, "bias", *bias, w.rows);
  }
  check::tensor(op, "out", out, {x.dtype}, x.device);
  check::rows(op, "out", out, m, w.rows);
  check::tensor(op, "workspace", workspace, {DType::UInt8}, x.device);
  check::at_least(op, "workspace", workspace, workspace_size(op, w, m, x.dtype, x.device));
  if (m == 0 || w.rows == 0) return;

  const Linear4bitArgs args{.x = x.data,
                            .dtype = x.dtype,
                            .m = m,
                            .weight = w,
                            .bias = bias ? bias->data : nullptr,
                            .out = out.data,
                            .workspace = workspace.data,
                            .device = x.device};
  x.device.type == DeviceType::Cpu ? cpu::linear_4bit(args) : cuda::linear_4bit(args, stream);
}

}  // namespace qbits
