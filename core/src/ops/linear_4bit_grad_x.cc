#include "ops/check.h"
#include "ops/linear_4bit.h"
#include "qbits/linear.h"

namespace qbits {
namespace {

int64_t workspace_size(std::string_view op, const Weight4bitArgs& w, int64_t m, DType grad, Device device) {
  int64_t product = 0;
  check::require(
      m >= 0 && !__builtin_mul_overflow(m, w.rows + w.cols, &product) && product < int64_t{1} << 59,
      ErrorCode::InvalidArgument, op, "m", [&] { return std::to_string(m); }, "a size of at least 0 that fits");
  if (m == 0 || w.cols == 0) return 0;
  return device.type == DeviceType::Cpu ? cpu::linear_4bit_grad_x_workspace(w, m, grad)
                                        : cuda::linear_4bit_grad_x_workspace(w, m, grad, device);
}

}  // namespace

int64_t linear_4bit_grad_x_workspace(const Weight4bit& weight, int64_t m, DType grad) {
  constexpr std::string_view op = "linear_4bit_grad_x";
  const Device device = weight.codes.device;
  const Weight4bitArgs w = check::weight_4bit(op, weight, device);
  check::require(is_floating(grad), ErrorCode::InvalidType, op, "grad dtype", name(grad),
                 "float32, bfloat16 or float16");
  return workspace_size(op, w, m, grad, device);
}

void linear_4bit_grad_x(const TensorView& grad, const Weight4bit& weight, const TensorView& out,
                        const TensorView& workspace, Stream stream) {
  constexpr std::string_view op = "linear_4bit_grad_x";
  check::floating(op, "grad", grad, grad.device);
  const Weight4bitArgs w = check::weight_4bit(op, weight, grad.device);
  const int64_t m = check::rows_of(op, "grad", grad, w.rows);
  check::tensor(op, "out", out, {grad.dtype}, grad.device);
  check::rows(op, "out", out, m, w.cols);
  check::workspace(op, workspace, workspace_size(op, w, m, grad.dtype, grad.device), grad.device);
  if (m == 0 || w.cols == 0) return;

  const Linear4bitGradXArgs args{.grad = grad.data,
                                 .dtype = grad.dtype,
                                 .m = m,
                                 .weight = w,
                                 .out = out.data,
                                 .workspace = workspace.data,
                                 .device = grad.device};
  grad.device.type == DeviceType::Cpu ? cpu::linear_4bit_grad_x(args) : cuda::linear_4bit_grad_x(args, stream);
}

}  // namespace qbits
