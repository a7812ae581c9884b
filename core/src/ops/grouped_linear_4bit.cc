#include "ops/grouped_linear_4bit.h"

#include "ops/check.h"
#include "ops/grouped_linear_4bit_plan.h"
#include "qbits/linear.h"

namespace qbits {
namespace {

constexpr int64_t kMaxRows = 1 << 30;  // offsets, and kernels, count rows of x in 32 bits

int64_t workspace_size(std::string_view op, const Weight4bitArgs& w, int64_t experts, int64_t m, DType x,
                       Device device) {
  check_rows(op, m, check_experts(op, experts, w.rows) + w.cols);
  if (m == 0 || w.rows == 0) return 0;
  return device.type == DeviceType::Cpu ? cpu::grouped_linear_4bit_workspace(w, experts, m, x)
                                        : cuda::grouped_linear_4bit_workspace(w, experts, m, x, device);
}

}  // namespace

int64_t check_offsets(std::string_view op, const TensorView& offsets, Device device) {
  check::tensor(op, "offsets", offsets, {DType::Int32}, device);
  check::at_least(op, "offsets", offsets, 2);
  return offsets.numel() - 1;
}

int64_t check_experts(std::string_view op, int64_t experts, int64_t weight_rows) {
  check::require(
      experts >= 1 && weight_rows % experts == 0, ErrorCode::InvalidArgument, op, "experts",
      [&] { return std::to_string(experts); },
      [&] { return "a divisor of the weight's " + std::to_string(weight_rows) + " rows"; });
  return weight_rows / experts;
}

void check_offset_values(std::string_view op, const TensorView& offsets, int64_t m) {
  if (offsets.device.type != DeviceType::Cpu) return;
  const int32_t* const offset = offsets.as<const int32_t>();
  for (int64_t e = 0; e < offsets.numel(); ++e) {
    check::require(
        offset[e] <= m && offset[e] >= (e == 0 ? 0 : offset[e - 1]), ErrorCode::InvalidArgument, op, "offsets",
        [&] { return std::to_string(offset[e]) + " at index " + std::to_string(e); },
        [&] { return "ascending numbers from 0 to " + std::to_string(m); });
  }
}

void check_rows(std::string_view op, int64_t m, int64_t columns) {
  int64_t product = 0;
  check::require(
      m >= 0 && m <= kMaxRows && !__builtin_mul_overflow(m, columns, &product) && product < int64_t{1} << 59,
      ErrorCode::InvalidArgument, op, "m", [&] { return std::to_string(m); }, "a size from 0 to 2^30 whose rows fit");
}

int64_t grouped_linear_4bit_workspace(const Weight4bit& weight, int64_t experts, int64_t m, DType x) {
  constexpr std::string_view op = "grouped_linear_4bit";
  const Device device = weight.codes.device;
  const Weight4bitArgs w = check::weight_4bit(op, weight, device);
  check::require(is_floating(x), ErrorCode::InvalidType, op, "x dtype", name(x), "float32, bfloat16 or float16");
  return workspace_size(op, w, experts, m, x, device);
}

void grouped_linear_4bit(const TensorView& x, const TensorView& offsets, const Weight4bit& weight,
                         const std::optional<TensorView>& bias, const TensorView& out, const TensorView& workspace,
                         Stream stream) {
  constexpr std::string_view op = "grouped_linear_4bit";
  check::floating(op, "x", x, x.device);
  const int64_t experts = check_offsets(op, offsets, x.device);
  const Weight4bitArgs w = check::weight_4bit(op, weight, x.device);
  const int64_t n = check_experts(op, experts, w.rows);
  const int64_t m = check::rows_of(op, "x", x, w.cols);
  if (bias) {
    check::tensor(op, "bias", *bias, {x.dtype}, x.device);
    check::numel(op, "bias", *bias, w.rows);
  }
  check_offset_values(op, offsets, m);
  check::tensor(op, "out", out, {x.dtype}, x.device);
  check::rows(op, "out", out, m, n);
  check::workspace(op, workspace, workspace_size(op, w, experts, m, x.dtype, x.device), x.device);
  if (m == 0 || n == 0) return;

  const GroupedLinear4bitArgs args{.x = x.data,
                                   .dtype = x.dtype,
                                   .m = m,
                                   .offsets = offsets.as<const int32_t>(),
                                   .experts = experts,
                                   .weight = w,
                                   .bias = bias ? bias->data : nullptr,
                                   .out = out.data,
                                   .workspace = workspace.data,
                                   .device = x.device};
  x.device.type == DeviceType::Cpu ? cpu::grouped_linear_4bit(args) : cuda::grouped_linear_4bit(args, stream);
}

std::string grouped_linear_4bit_plan(const Format& format, int64_t experts, int64_t rows, int64_t cols,
                                     int64_t block_size, int64_t m, DType x, const std::optional<CudaDevice>& device) {
  constexpr std::string_view op = "grouped_linear_4bit_plan";
  check::require(format.is_4bit(), ErrorCode::InvalidArgument, op, "format", format.name, "a 4-bit format");
  check::block_size(op, "block size", format, block_size);
  int64_t size = 0;
  check::require(
      experts >= 1 && rows >= 0 && cols >= 0 && m >= 0 && m <= kMaxRows && !__builtin_mul_overflow(rows, cols, &size) &&
          !__builtin_mul_overflow(size, experts, &size) && !__builtin_mul_overflow(m, rows, &size) &&
          !__builtin_mul_overflow(m, cols, &size),
      ErrorCode::InvalidArgument, op, "sizes",
      [&] {
        return "experts " + std::to_string(experts) + ", rows " + std::to_string(rows) + ", cols " +
               std::to_string(cols) + ", m " + std::to_string(m);
      },
      "at least 1 expert, the others at least 0, m up to 2^30 and products below 2^63");
  check::require(is_floating(x), ErrorCode::InvalidType, op, "dtype of x", name(x), "float32, bfloat16 or float16");
  check::cuda_device(op, device);
  if (m == 0 || rows == 0) return "nothing to do: the result is empty";
  if (!device) return cpu::grouped_linear_4bit_plan(experts, rows, cols, m);
  return to_string(grouped_linear_4bit_plan({.coding = format.coding,
                                             .block_size = block_size == 0 ? cols : block_size,
                                             .n = rows,
                                             .k = cols,
                                             .m = m,
                                             .experts = experts,
                                             .dtype = x,
                                             .compute_capability = device->compute_capability,
                                             .sm_count = device->sm_count}));
}

}  // namespace qbits
