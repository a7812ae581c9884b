#include <nanobind/nanobind.h>

#include <optional>
#include <string_view>

#include "define.h"
#include "init.h"
#include "input.h"
#include "matrix.h"
#include "onlookers.h"
#include "qbits/linear.h"
#include "weight_4bit.h"

namespace nb = nanobind;

// Each argument costs as much as all checks here: the product and its gradient take the weight as one tuple.

namespace qbits::bindings {
namespace {

int64_t integer(nb::handle object) {
  const int64_t value = PyLong_AsLongLong(object.ptr());
  if (value == -1 && PyErr_Occurred() != nullptr) throw nb::python_error();
  return value;
}

// Of (codes, scales, format, block_size, n, k, zeros, nested_absmax, nested_code, offset); the last four may be None,
// or missing from the end.
Weight4bit weight(const nb::tuple& operands, const char* op) {
  const auto size = static_cast<Py_ssize_t>(operands.size());
  if (size < 6 || size > 10)
    throw nb::type_error("operands: want codes, scales, format, block_size, n, k and the rest");
  const auto item = [&](Py_ssize_t i) { return nb::handle(PyTuple_GetItem(operands.ptr(), i)); };
  const auto rest = [&](Py_ssize_t i, const char* argument) {
    return i < size ? optional_view(item(i), op, argument) : std::nullopt;
  };
  Py_ssize_t length = 0;
  const char* const format = PyUnicode_AsUTF8AndSize(item(2).ptr(), &length);
  if (format == nullptr) throw nb::python_error();
  const TensorView codes = view(item(0), op, "codes");
  const TensorView scales = view(item(1), op, "scales");
  return weight_4bit(codes, scales, find_format({format, static_cast<size_t>(length)}, op, "format"), integer(item(3)),
                     integer(item(4)), integer(item(5)), rest(6, "zeros"), rest(7, "nested_absmax"),
                     rest(8, "nested_code"), rest(9, "offset"));
}

constexpr const char* kOp = "linear_4bit";

nb::object multiply(const Input& x, const std::optional<TensorView>& bias, const Weight4bit& w) {
  nb::object out = x.new_empty(w.rows);
  const TensorView out_view = view(out, kOp, "out");
  const Stream stream = current_stream(x.view.device);
  const nb::gil_scoped_release release;
  const Scratch scratch(linear_4bit_workspace(w, rows(x.view), x.view.dtype), x.view.device);
  qbits::linear_4bit(matrix(x.view), w, bias, matrix(out_view), scratch.view(), stream);
  return out;
}

nb::object linear_4bit(nb::handle x, nb::handle bias, const nb::tuple& operands) {
  const Input input(x, kOp, "x");
  const OptionalInput bias_input(bias, kOp, "bias");
  return multiply(input, bias_input.view(), weight(operands, kOp));
}

// What a QuantizedTensor has as `operands`; empty if there is none.
nb::tuple operands_of(nb::handle weight) {
  static PyObject* const name = PyUnicode_InternFromString("operands");
  nb::object operands = nb::steal(PyObject_GetAttr(weight.ptr(), name));
  if (!operands.is_valid()) {
    nb::python_error error;
    if (!error.matches(PyExc_AttributeError)) throw error;
    return {};
  }
  return nb::isinstance<nb::tuple>(operands) ? nb::steal<nb::tuple>(operands.release()) : nb::tuple();
}

bool scales_require_grad(const nb::tuple& operands) {
  if (requires_grad(operands[1])) return true;
  for (size_t i = 6; i < operands.size(); ++i) {
    if (requires_grad(operands[i])) return true;
  }
  return false;
}

// The product; the weight's operands where autograd is to follow it; None where torch's dispatcher has a part in it or
// an argument is for the op to refuse.
nb::object linear_4bit_direct(nb::handle x, nb::handle weight_tensor, nb::handle bias) {
  if (!bypasses_dispatcher(x, {bias})) return nb::none();
  const nb::tuple operands = operands_of(weight_tensor);
  if (operands.size() < 6) return nb::none();
  if (is_grad_enabled()) {
    if (requires_grad(x) || requires_grad(bias)) return operands;
    if (scales_require_grad(operands)) return nb::none();
  }
  const Input input(x, kOp, "x");
  const OptionalInput bias_input(bias, kOp, "bias");
  const std::optional<TensorView> bias_view = bias_input.view();
  if (bias_view && (bias_view->ndim != 1 || bias_view->dtype != input.view.dtype)) return nb::none();
  return multiply(input, bias_view, weight(operands, kOp));
}

nb::object linear_4bit_grad_x(nb::handle grad, const nb::tuple& operands) {
  constexpr const char* op = "linear_4bit_grad_x";
  const Input input(grad, op, "grad");
  const Weight4bit w = weight(operands, op);
  nb::object out = input.new_empty(w.cols);
  const TensorView out_view = view(out, op, "out");
  const Stream stream = current_stream(input.view.device);
  const nb::gil_scoped_release release;
  const Scratch scratch(linear_4bit_grad_x_workspace(w, rows(input.view), input.view.dtype), input.view.device);
  qbits::linear_4bit_grad_x(matrix(input.view), w, matrix(out_view), scratch.view(), stream);
  return out;
}

}  // namespace

void init_linear_4bit(nb::module_& m) {
  using namespace nb::literals;
  m.def("linear_4bit", &linear_4bit, "x"_a.none(), "bias"_a.none(), "operands"_a,
        nb::sig("def linear_4bit(x: torch.Tensor, bias: torch.Tensor | None, operands: tuple) -> torch.Tensor"));
  m.def("linear_4bit_direct", &linear_4bit_direct, "x"_a.none(), "weight"_a.none(), "bias"_a.none(),
        nb::sig("def linear_4bit_direct(x: object, weight: object, bias: object) -> torch.Tensor | tuple | None"));
  m.def("linear_4bit_grad_x", &linear_4bit_grad_x, "grad"_a.none(), "operands"_a,
        nb::sig("def linear_4bit_grad_x(grad: torch.Tensor, operands: tuple) -> torch.Tensor"));
}

}  // namespace qbits::bindings
