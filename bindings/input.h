#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#include "tensor_caster.h"

// For functions that are called once per layer and token: they take plain handles, and make a row-major input and the
// output themselves, because each step in Python would cost as much as all checks here.

namespace qbits::bindings {

inline TensorView view(nanobind::handle object, const char* op, const char* argument) {
  TensorView view;
  if (!view_tensor(object.ptr(), view)) throw_refusal(object.ptr(), op, argument);
  return view;
}

inline std::optional<TensorView> optional_view(nanobind::handle object, const char* op, const char* argument) {
  if (object.is_none()) return std::nullopt;
  return view(object, op, argument);
}

// A call's input, row-major: `object` itself or a copy.
struct Input {
  Input(nanobind::handle tensor, const char* op, const char* argument)
      : object(nanobind::borrow(tensor)), view(bindings::view(object, op, argument)) {
    if (view.is_contiguous()) return;
    object = object.attr("contiguous")();
    view = bindings::view(object, op, argument);
  }

  // A tensor like the input but for `columns` in its last dimension, of which it has at least one.
  nanobind::object new_empty(int64_t columns) const {
    static PyObject* const name = PyUnicode_InternFromString("new_empty");
    std::array<nanobind::object, TensorView::kMaxDims> s;
    const int last = std::max(view.ndim - 1, 0);
    for (int i = 0; i < last; ++i) s[i] = nanobind::int_(view.shape[i]);
    s[last] = nanobind::int_(columns);
    // The first null ends the list.
    PyObject* const made =
        PyObject_CallMethodObjArgs(object.ptr(), name, s[0].ptr(), s[1].ptr(), s[2].ptr(), s[3].ptr(), s[4].ptr(),
                                   s[5].ptr(), s[6].ptr(), s[7].ptr(), nullptr);
    if (made == nullptr) throw nanobind::python_error();
    return nanobind::steal(made);
  }

  nanobind::object object;
  TensorView view;
};

// The same of an argument that may be None.
class OptionalInput {
 public:
  OptionalInput(nanobind::handle tensor, const char* op, const char* argument) {
    if (!tensor.is_none()) input_.emplace(tensor, op, argument);
  }

  std::optional<TensorView> view() const { return input_ ? std::optional(input_->view) : std::nullopt; }

 private:
  std::optional<Input> input_;
};

}  // namespace qbits::bindings
