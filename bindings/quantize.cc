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
}

}  // namespace qbits::bindings
