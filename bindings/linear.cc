#include "qbits/linear.h"

#include <nanobind/stl/string.h>

#include <string>

#include "define.h"
#include "init.h"
#include "matrix.h"
#include "qbits/error.h"
#include "weight_4bit.h"

namespace qbits::bindings {
namespace {

DType dtype(std::string_view op, std::string_view dtype_name) {
  for (const DType d : {DType::Float32, DType::BFloat16, DType::Float16}) {
    if (name(d) == dtype_name) return d;
  }
  throw Error(ErrorCode::InvalidType, "[" + std::string(op) + "] dtype of x: got " + std::string(dtype_name) +
                                          ", want float32, bfloat16 or float16");
}

int64_t rows_of_experts(std::string_view op, int64_t experts, int64_t n) {
  int64_t all = 0;
  if (experts >= 1 && n >= 0 && !__builtin_mul_overflow(experts, n, &all)) return all;
  throw Error(ErrorCode::InvalidArgument, "[" + std::string(op) + "] experts: got " + std::to_string(experts) + " of " +
                                              std::to_string(n) +
                                              " rows, want at least 1, by one offset more than experts");
}

}  // namespace

using nanobind::none;
using namespace nanobind::literals;

void init_linear(nanobind::module_& m) {
  define(
      m, "linear_4bit_plan",
      +[](const Format& format, int64_t rows, int64_t cols, int64_t block_size, int64_t x_rows,
          std::string_view x_dtype, std::optional<int> compute_capability, int sm_count) {
        std::optional<CudaDevice> device;
        if (compute_capability) device = {*compute_capability, sm_count};
        return linear_4bit_plan(format, rows, cols, block_size, x_rows, dtype("linear_4bit_plan", x_dtype), device);
      },
      "format"_a, "rows"_a, "cols"_a, "block_size"_a, "m"_a, "dtype"_a, "compute_capability"_a = none(),
      "sm_count"_a = 0);
  define(
      m, "grouped_linear_4bit",
      +[](const TensorView& x, const TensorView& offsets, const TensorView& codes, const TensorView& scales,
          OptionalView bias, const Format& format, int64_t block_size, int64_t n, int64_t k, const TensorView& out,
          OptionalView zeros, OptionalView nested_absmax, OptionalView nested_code, OptionalView offset,
          Stream stream) {
        const int64_t experts = offsets.numel() - 1;
        const int64_t all_rows = rows_of_experts("grouped_linear_4bit", experts, n);
        const Weight4bit weight =
            weight_4bit(codes, scales, format, block_size, all_rows, k, zeros, nested_absmax, nested_code, offset);
        const Scratch scratch(grouped_linear_4bit_workspace(weight, experts, rows(x), x.dtype), codes.device);
        grouped_linear_4bit(x, offsets, weight, bias, out, scratch.view(), stream);
      },
      "x"_a, "offsets"_a, "codes"_a, "scales"_a, "bias"_a, "format"_a, "block_size"_a, "n"_a, "k"_a, "out"_a,
      "zeros"_a = none(), "nested_absmax"_a = none(), "nested_code"_a = none(), "offset"_a = none());
  define(
      m, "grouped_linear_4bit_plan",
      +[](const Format& format, int64_t experts, int64_t rows, int64_t cols, int64_t block_size, int64_t x_rows,
          std::string_view x_dtype, std::optional<int> compute_capability, int sm_count) {
        std::optional<CudaDevice> device;
        if (compute_capability) device = {*compute_capability, sm_count};
        return grouped_linear_4bit_plan(format, experts, rows, cols, block_size, x_rows,
                                        dtype("grouped_linear_4bit_plan", x_dtype), device);
      },
      "format"_a, "experts"_a, "rows"_a, "cols"_a, "block_size"_a, "m"_a, "dtype"_a, "compute_capability"_a = none(),
      "sm_count"_a = 0);
  define(
      m, "grouped_linear_4bit_grad_x",
      +[](const TensorView& grad, const TensorView& offsets, const TensorView& codes, const TensorView& scales,
          const Format& format, int64_t block_size, int64_t n, int64_t k, const TensorView& out, OptionalView zeros,
          OptionalView nested_absmax, OptionalView nested_code, OptionalView offset, Stream stream) {
        const int64_t experts = offsets.numel() - 1;
        const int64_t all_rows = rows_of_experts("grouped_linear_4bit_grad_x", experts, n);
        const Weight4bit weight =
            weight_4bit(codes, scales, format, block_size, all_rows, k, zeros, nested_absmax, nested_code, offset);
        const Scratch scratch(grouped_linear_4bit_grad_x_workspace(weight, experts, rows(grad), grad.dtype),
                              codes.device);
        grouped_linear_4bit_grad_x(grad, offsets, weight, out, scratch.view(), stream);
      },
      "grad"_a, "offsets"_a, "codes"_a, "scales"_a, "format"_a, "block_size"_a, "n"_a, "k"_a, "out"_a,
      "zeros"_a = none(), "nested_absmax"_a = none(), "nested_code"_a = none(), "offset"_a = none());
  define(
      m, "embedding_4bit",
      +[](const TensorView& indices, const TensorView& codes, const TensorView& scales, const Format& format,
          int64_t block_size, int64_t n, int64_t k, const TensorView& out, OptionalView zeros,
          OptionalView nested_absmax, OptionalView nested_code, OptionalView offset, Stream stream) {
        embedding_4bit(indices,
                       weight_4bit(codes, scales, format, block_size, n, k, zeros, nested_absmax, nested_code, offset),
                       matrix(out), stream);
      },
      "indices"_a, "codes"_a, "scales"_a, "format"_a, "block_size"_a, "n"_a, "k"_a, "out"_a, "zeros"_a = none(),
      "nested_absmax"_a = none(), "nested_code"_a = none(), "offset"_a = none());
}

}  // namespace qbits::bindings
