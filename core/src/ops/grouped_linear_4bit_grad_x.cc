#include "ops/check.h"
#include "ops/grouped_linear_4bit.h"
#include "qbits/linear.h"

namespace qbits {
namespace {

int64_t workspace_size(std::string_view op, const Weight4bitArgs& w, int64_t experts, int64_t m, DType grad,
                       Device device) {
  check_rows(op, m, check_experts(op, experts, w.rows) + w.cols);
  if (m == 0 || w.cols == 0) return 0;
  return device.type == DeviceType::Cpu ? cpu::grouped_linear_4bit_grad_x_workspace(w, experts, m, grad)
                                        : cuda::grouped_linear_4bit_grad_x_workspace(w, experts, m, grad, device);
}

}  // namespace

int64_t grouped_linear_4bit_grad_x_workspace(const Weight4bit& weight, int64_t experts, int64_t m, DType grad) {
  constexpr std::string_view op = "grouped_linear_4bit_grad_x";
  const Device device = weight.codes.device;
  const Weight4bitArgs w = check::weight_4bit(op, weight, device);
  check::require(is_floating(grad), ErrorCode::InvalidType, op, "grad dtype", name(grad),
                 "float32, bfloat16 or float16");
  return workspace_size(op, w, experts, m, grad, device);
}

void grouped_linear_4bit_grad_x(const TensorView& grad, const TensorView& offsets, const Weight4bit& weight,
                                const TensorView& out, const TensorView& workspace, Stream stream) {
  constexpr std::string_view op = "grouped_linear_4bit_grad_x";
  check::floating(op, "grad", grad, grad.device);
  const int64_t experts = check_offsets(op, offsets, grad.device);
  const Weight4bitArgs w = check::weight_4bit(op, weight, grad.device);
  const int64_t m = check::rows_of(op, "grad", grad, check_experts(op, experts, w.rows));
  check_offset_values(op, offsets, m);
  check::tensor(op, "out", out, {grad.dtype}, grad.device);
  check::rows(op, "out", out, m, w.cols);
  check::workspace(op, workspace, workspace_size(op, w, experts, m, grad.dtype, grad.device), grad.device);
  if (m == 0 || w.cols == 0) return;

  const GroupedLinear4bitGradXArgs args{.grad = grad.data,
                                        .dtype = grad.dtype,
                                        .m = m,
                                        .offsets = offsets.as<const int32_t>(),
                                        .experts = experts,
                                        .weight = w,
                                        .out = out.data,
                                        .workspace = workspace.data,
                                        .device = grad.device};
  grad.device.type == DeviceType::Cpu ? cpu::grouped_linear_4bit_grad_x(args)
                                      : cuda::grouped_linear_4bit_grad_x(args, stream);
}

}  // namespace qbits
