#include "qbits/int8.h"

#include <optional>

#include "define.h"
#include "init.h"
#include "input.h"
#include "matrix.h"

namespace nb = nanobind;

namespace qbits::bindings {
namespace {

nb::object linear_int8(nb::handle x, nb::handle codes, nb::handle scales, nb::handle bias, float threshold) {
  constexpr const char* op = "linear_int8";
  const Input input(x, op, "x");
  const Input weight_codes(codes, op, "weight codes");
  const Input weight_scales(scales, op, "weight scales");
  std::optional<Input> bias_input;
  if (!bias.is_none()) bias_input.emplace(bias, op, "bias");
  const WeightInt8 weight{.codes = weight_codes.view, .scales = weight_scales.view};
  // Refuses codes that do not say how many columns the output has.
  const int64_t bytes = linear_int8_workspace(weight, rows(input.view), input.view.dtype, threshold);
  nb::object out = input.new_empty(weight.codes.shape[0]);
  const TensorView out_view = view(out, op, "out");
  const Stream stream = current_stream(input.view.device);
  const nb::gil_scoped_release release;
  const Scratch scratch(bytes, input.view.device);
  qbits::linear_int8(input.view, weight, bias_input ? std::optional(bias_input->view) : std::nullopt, threshold,
                     out_view, scratch.view(), stream);
  return out;
}

}  // namespace

void init_int8(nb::module_& m) {
  using namespace nb::literals;
  define(
      m, "quantize_int8_rowwise",
      +[](const TensorView& x, float threshold, const TensorView& codes, const TensorView& scales,
          const std::optional<TensorView>& outlier_columns, const std::optional<TensorView>& outlier_count,
          Stream stream) {
        std::optional<OutlierColumns> outliers;
        if (outlier_columns && outlier_count) outliers = {*outlier_columns, *outlier_count};
        const int64_t cols = x.ndim == 0 ? 1 : x.shape[x.ndim - 1];
        const Scratch scratch(quantize_int8_rowwise_workspace(rows(x), cols, threshold, x.device), x.device);
        quantize_int8_rowwise(x, threshold, codes, scales, outliers, scratch.view(), stream);
      },
      "x"_a, "threshold"_a, "codes"_a, "scales"_a, "outlier_columns"_a = nb::none(), "outlier_count"_a = nb::none());
  define(
      m, "quantize_int8_colwise",
      +[](const TensorView& x, float threshold, const TensorView& codes, const TensorView& scales, Stream stream) {
        const int64_t cols = x.ndim == 0 ? 1 : x.shape[x.ndim - 1];
        const Scratch scratch(quantize_int8_colwise_workspace(rows(x), cols, x.device), x.device);
        quantize_int8_colwise(x, threshold, codes, scales, scratch.view(), stream);
      },
      "x"_a, "threshold"_a, "codes"_a, "scales"_a);
  define(m, "dequantize_int8_rowwise", &dequantize_int8_rowwise, "codes"_a, "scales"_a, "out"_a);
  define(m, "dequantize_int8_product", &dequantize_int8_product, "dots"_a, "row_scales"_a, "column_scales"_a,
         "bias"_a.none(), "out"_a);
  define(
      m, "igemm",
      +[](const TensorView& a, bool transpose_a, const TensorView& b, bool transpose_b, const TensorView& out,
          Stream stream) {
        const Scratch scratch(igemm_workspace(a, transpose_a, b, transpose_b), a.device);
        igemm(a, transpose_a, b, transpose_b, out, scratch.view(), stream);
      },
      "a"_a, "transpose_a"_a, "b"_a, "transpose_b"_a, "out"_a);
  m.def("linear_int8", &linear_int8, "x"_a.none(), "codes"_a.none(), "scales"_a.none(), "bias"_a.none(), "threshold"_a,
        nb::sig("def linear_int8(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, "
                "bias: torch.Tensor | None, threshold: float) -> torch.Tensor"));
}

}  // namespace qbits::bindings
