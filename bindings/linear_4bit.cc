#include <nanobind/nanobind.h>

#include <optional>
#include <string_view>

#include "define.h"
#include "init.h"
#include "input.h"
#include "matrix.h"
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

nb::object linear_4bit(nb::handle x, nb::handle bias, const nb::tuple& operands) {
  constexpr const char* op = "linear_4bit";
  const Input input(x, op, "x");
  const OptionalInput bias_input(bias, op, "bias");
  const Weight4bit w = weight(operands, op);
  nb::object out = input.new_empty(w.rows);
  const TensorView out_view = view(out, op, "out");
  const Stream stream = current_stream(input.view.device);
  const nb::gil_scoped_release release;
  const Scratch scratch(linear_4bit_workspace(w, rows(input.view), input.view.dtype), input.view.device);
  qbits::linear_4bit(matrix(input.view), w, bias_input.view(), matrix(out_view), scratch.view(), stream);
  return out;
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
  m.def("linear_4bit_grad_x", &linear_4bit_grad_x, "grad"_a.none(), "operands"_a,
        nb::sig("def linear_4bit_grad_x(grad: torch.Tensor, operands: tuple) -> torch.Tensor"));
}

}  // namespace qbits::bindings
