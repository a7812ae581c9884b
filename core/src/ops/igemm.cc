#include "ops/check.h"
#include "ops/int8.h"
#include "qbits/int8.h"

namespace qbits {
namespace {

struct Operand {
  int64_t batch;  // -1 of a matrix
  int64_t rows;
  int64_t cols;
};

Operand operand(std::string_view op, std::string_view what, const TensorView& t, DType dtype, bool transposed,
                Device device) {
  check::tensor(op, what, t, {dtype}, device);
  check::require(
      t.ndim == 2 || t.ndim == 3, ErrorCode::InvalidArgument, op, what, [&] { return t.describe(); },
      "2 dimensions, or 3 with a batch");
  const int64_t* const shape = t.shape.data() + t.ndim - 2;
  const int64_t batch = t.ndim == 3 ? t.shape[0] : -1;
  int64_t all_rows = 0;
  const bool fits = !__builtin_mul_overflow(batch < 0 ? 1 : batch, shape[0], &all_rows) && shape[0] <= INT32_MAX;
  check::int8_sizes(op, fits ? all_rows : -1, shape[1]);
  return {batch, shape[transposed ? 1 : 0], shape[transposed ? 0 : 1]};
}

// The arguments without an output.
IgemmArgs problem(std::string_view op, const TensorView& a, bool transpose_a, const TensorView& b, bool transpose_b) {
  const Operand left = operand(op, "a", a, DType::Int8, transpose_a, a.device);
  const Operand right = operand(op, "b", b, DType::Int8, transpose_b, a.device);
  check::require(
      left.batch == right.batch && left.cols == right.rows, ErrorCode::InvalidArgument, op, "b",
      [&] { return b.describe() + (transpose_b ? ", transposed" : ""); },
      [&] {
        const std::string batch = left.batch < 0 ? "2 dimensions" : "a batch of " + std::to_string(left.batch);
        return batch + " and a depth of " + std::to_string(left.cols);
      });
  return {.a = a.as<const int8_t>(),
          .b = b.as<const int8_t>(),
          .out = nullptr,
          .batch = left.batch < 0 ? 1 : left.batch,
          .m = left.rows,
          .n = right.cols,
          .k = left.cols,
          .transpose_a = transpose_a,
          .transpose_b = transpose_b,
          .workspace = nullptr,
          .device = a.device};
}

int64_t workspace_size(const IgemmArgs& args) {
  if (args.batch == 0 || args.m == 0 || args.n == 0) return 0;
  return args.device.type == DeviceType::Cpu ? cpu::igemm_workspace(args) : cuda::igemm_workspace(args);
}

}  // namespace

int64_t igemm_workspace(const TensorView& a, bool transpose_a, const TensorView& b, bool transpose_b) {
  return workspace_size(problem("igemm_workspace", a, transpose_a, b, transpose_b));
}

void igemm(const TensorView& a, bool transpose_a, const TensorView& b, bool transpose_b, const TensorView& out,
           const TensorView& workspace, Stream stream) {
  constexpr std::string_view op = "igemm";
  IgemmArgs args = problem(op, a, transpose_a, b, transpose_b);
  const Operand result = operand(op, "out", out, DType::Int32, false, a.device);
  check::require(
      out.ndim == a.ndim && (out.ndim == 2 || result.batch == args.batch) && result.rows == args.m &&
          result.cols == args.n,
      ErrorCode::InvalidArgument, op, "out", [&] { return out.describe(); },
      [&] {
        const std::string batch = a.ndim == 2 ? "" : std::to_string(args.batch) + ", ";
        return "[" + batch + std::to_string(args.m) + ", " + std::to_string(args.n) + "]";
      });
  check::workspace(op, workspace, workspace_size(args), a.device);
  if (args.batch == 0 || args.m == 0 || args.n == 0) return;

  args.out = out.as<int32_t>();
  args.workspace = workspace.data;
  a.device.type == DeviceType::Cpu ? cpu::igemm(args) : cuda::igemm(args, stream);
}

}  // namespace qbits
