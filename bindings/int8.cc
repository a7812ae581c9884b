#include "qbits/int8.h"

#include <optional>

#include "define.h"
#include "init.h"
#include "input.h"
#include "matrix.h"

namespace nb = nanobind;

namespace qbits::bindings {
namespace {

// What the arguments of a product with a weight of int8 rows are made of.
struct Operands {
  Input x, codes, scales;
  OptionalInput bias_input;

  Operands(const char* op, nb::handle x_tensor, nb::handle weight_codes, nb::handle weight_scales, nb::handle bias)
      : x(x_tensor, op, "x"),
        codes(weight_codes, op, "weight codes"),
        scales(weight_scales, op, "weight scales"),
        bias_input(bias, op, "bias") {}
  WeightInt8 weight() const { return {.codes = codes.view, .scales = scales.view}; }
  std::optional<TensorView> bias() const { return bias_input.view(); }

  // The output, which multiply(out, workspace, stream) writes with `bytes` of workspace. Who asked how many they are
  // has had codes refused that do not say how many columns the output has.
  template <class Multiply>
  nb::object run(const char* op, int64_t bytes, Multiply multiply) const {
    nb::object out = x.new_empty(codes.view.shape[0]);
    const TensorView out_view = view(out, op, "out");
    const Stream stream = current_stream(x.view.device);
    const nb::gil_scoped_release release;
    const Scratch scratch(bytes, x.view.device);
    multiply(out_view, scratch.view(), stream);
    return out;
  }
};

nb::object linear_int8(nb::handle x, nb::handle codes, nb::handle scales, nb::handle bias, float threshold) {
  constexpr const char* op = "linear_int8";
  const Operands in(op, x, codes, scales, bias);
  const int64_t bytes = linear_int8_workspace(in.weight(), rows(in.x.view), in.x.view.dtype, threshold);
  return in.run(op, bytes, [&](const TensorView& out, const TensorView& workspace, Stream stream) {
    qbits::linear_int8(in.x.view, in.weight(), in.bias(), threshold, out, workspace, stream);
  });
}

nb::object linear_int8_weight_only(nb::handle x, nb::handle codes, nb::handle scales, nb::handle bias) {
  constexpr const char* op = "linear_int8_weight_only";
  const Operands in(op, x, codes, scales, bias);
  const int64_t bytes = linear_int8_weight_only_workspace(in.weight(), rows(in.x.view), in.x.view.dtype);
  return in.run(op, bytes, [&](const TensorView& out, const TensorView& workspace, Stream stream) {
    qbits::linear_int8_weight_only(in.x.view, in.weight(), in.bias(), out, workspace, stream);
  });
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
  m.def("linear_int8_weight_only", &linear_int8_weight_only, "x"_a.none(), "codes"_a.none(), "scales"_a.none(),
        "bias"_a.none(),
        nb::sig("def linear_int8_weight_only(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, "
                "bias: torch.Tensor | None) -> torch.Tensor"));
}

}  // namespace qbits::bindings
