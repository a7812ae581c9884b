#include "ops/linear_4bit.h"

#include "ops/check.h"
#include "ops/linear_4bit_plan.h"
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
  check::workspace(op, workspace, workspace_size(op, w, m, x.dtype, x.device), x.device);
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

std::string linear_4bit_plan(const Format& format, int64_t rows, int64_t cols, int64_t block_size, int64_t m, DType x,
                             const std::optional<CudaDevice>& device) {
  constexpr std::string_view op = "linear_4bit_plan";
  check::require(format.is_4bit(), ErrorCode::InvalidArgument, op, "format", format.name, "a 4-bit format");
  check::block_size(op, "block size", format, block_size);
  int64_t size = 0;
  check::require(
      rows >= 0 && cols >= 0 && m >= 0 && !__builtin_mul_overflow(rows, cols, &size) &&
          !__builtin_mul_overflow(m, rows, &size) && !__builtin_mul_overflow(m, cols, &size),
      ErrorCode::InvalidArgument, op, "sizes",
      [&] { return "rows " + std::to_string(rows) + ", cols " + std::to_string(cols) + ", m " + std::to_string(m); },
      "each at least 0 and their products below 2^63");
  check::require(is_floating(x), ErrorCode::InvalidType, op, "dtype of x", name(x), "float32, bfloat16 or float16");
  check::cuda_device(op, device);
  if (m == 0 || rows == 0) return "nothing to do: the result is empty";

  const int64_t run = block_size == 0 ? cols : block_size;
  if (!device) return cpu::linear_4bit_plan({.format = &format, .rows = rows, .cols = cols, .block_size = run}, m);
  return to_string(linear_4bit_plan({.coding = format.coding,
                                     .block_size = run,
                                     .n = rows,
                                     .k = cols,
                                     .m = m,
                                     .dtype = x,
                                     .packs = can_pack(format, x, format.scale_dtypes.front()),
                                     .compute_capability = device->compute_capability,
                                     .sm_count = device->sm_count}));
}

}  // namespace qbits
