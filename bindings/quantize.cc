#include "qbits/quantize.h"

#include "define.h"
#include "init.h"

namespace qbits::bindings {

using nanobind::none;
using namespace nanobind::literals;

void init_quantize(nanobind::module_& m) {
  define(m, "quantize_4bit", &quantize_4bit, "x"_a, "format"_a, "block_size"_a, "codes"_a, "absmax"_a);
  define(
      m, "dequantize_4bit",
      +[](const TensorView& codes, const TensorView& absmax, const Format& format, int64_t block_size,
          const TensorView& out, const std::optional<TensorView>& nested_absmax,
          const std::optional<TensorView>& nested_code, const std::optional<TensorView>& offset, Stream stream) {
        dequantize_4bit(codes, {absmax, nested_absmax, nested_code, offset}, format, block_size, out, stream);
      },
      "codes"_a, "absmax"_a, "format"_a, "block_size"_a, "out"_a, "nested_absmax"_a = none(), "nested_code"_a = none(),
      "offset"_a = none());
  define(m, "quantize_absmax", &quantize_absmax, "absmax"_a, "nested_code"_a, "values"_a, "nested_absmax"_a,
         "offset"_a);
  define(
      m, "dequantize_absmax",
      +[](const TensorView& values, const TensorView& nested_absmax, const TensorView& nested_code,
          const TensorView& offset, const TensorView& out,
          Stream stream) { dequantize_absmax({values, nested_absmax, nested_code, offset}, out, stream); },
      "values"_a, "nested_absmax"_a, "nested_code"_a, "offset"_a, "out"_a);
  define(m, "quantize_affine", &quantize_affine, "x"_a, "format"_a, "group_size"_a, "codes"_a, "scales"_a, "zeros"_a);
  define(m, "dequantize_affine", &dequantize_affine, "codes"_a, "scales"_a, "zeros"_a, "format"_a, "group_size"_a,
         "out"_a);
  define(m, "quantize_blockwise", &quantize_blockwise, "x"_a, "code"_a, "block_size"_a, "codes"_a, "absmax"_a);
  define(m, "dequantize_blockwise", &dequantize_blockwise, "codes"_a, "absmax"_a, "code"_a, "block_size"_a, "out"_a);
  define(m, "estimate_quantiles_workspace", &estimate_quantiles_workspace, "x"_a);
  define(m, "estimate_quantiles", &estimate_quantiles, "x"_a, "offset"_a, "quantiles"_a, "workspace"_a);
}

}  // namespace qbits::bindings
