#include "qbits/linear.h"

#include <nanobind/stl/string.h>

#include <string>

#include "define.h"
#include "init.h"
#include "qbits/error.h"
#include "weight_4bit.h"

namespace qbits::bindings {
namespace {

DType dtype(std::string_view dtype_name) {
  for (const DType d : {DType::Float32, DType::BFloat16, DType::Float16}) {
    if (name(d) == dtype_name) return d;
  }
  throw Error(ErrorCode::InvalidType,
              "[linear_4bit_plan] dtype of x: got " + std::string(dtype_name) + ", want float32, bfloat16 or float16");
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
        return linear_4bit_plan(format, rows, cols, block_size, x_rows, dtype(x_dtype), device);
      },
      "format"_a, "rows"_a, "cols"_a, "block_size"_a, "m"_a, "dtype"_a, "compute_capability"_a = none(),
      "sm_count"_a = 0);
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
