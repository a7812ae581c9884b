#include "layer_call.h"

#include <algorithm>
#include <array>

#include "tensor_caster.h"

namespace nb = nanobind;

namespace qbits::bindings {
namespace {

// References for as long as torch is there, which is never unloaded.
struct Torch {
  PyObject* module_type = nullptr;  // nn.Module
  PyObject* call = nullptr;         // what it has under the name
  PyObject* call_impl = nullptr;
  std::array<PyObject*, 4> global_hooks{};  // dicts
  PyObject* is_autocast = nullptr;
};
Torch torch;

// Interned once, at import.
struct Names {
  PyObject* call = nullptr;
  PyObject* call_impl = nullptr;
  PyObject* forward = nullptr;
  PyObject* compiled = nullptr;
  std::array<PyObject*, 4> hooks{};
  PyObject* parameters = nullptr;
  PyObject* weight = nullptr;
  PyObject* bias = nullptr;
  PyObject* config = nullptr;
  PyObject* compute_dtype = nullptr;
  PyObject* dtype = nullptr;
};
Names names;

// A borrowed reference; null if `dict` is no dict, or has no such key.
PyObject* item(PyObject* dict, PyObject* key) {
  if (dict == nullptr || !PyDict_Check(dict)) return nullptr;
  PyObject* const value = PyDict_GetItemWithError(dict, key);
  if (value == nullptr && PyErr_Occurred() != nullptr) throw nb::python_error();
  return value;
}

nb::object attribute(PyObject* object, PyObject* name) {
  nb::object value = nb::steal(PyObject_GetAttr(object, name));
  if (!value.is_valid()) throw nb::python_error();
  return value;
}

bool is_empty_dict(PyObject* dict) { return dict != nullptr && PyDict_Check(dict) && PyDict_Size(dict) == 0; }

bool has_replaced(nb::handle layer, nb::handle forward, PyObject* attributes) {
  auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(layer.ptr()));
  return item(attributes, names.forward) != nullptr || item(attributes, names.call_impl) != nullptr ||
         item(attributes, names.compiled) != nullptr || attribute(type, names.forward).ptr() != forward.ptr() ||
         attribute(type, names.call_impl).ptr() != torch.call_impl ||
         attribute(torch.module_type, names.call).ptr() != torch.call;
}

bool has_hooks(PyObject* attributes) {
  const auto is_hooked = [&](PyObject* name) { return !is_empty_dict(item(attributes, name)); };
  return !std::ranges::all_of(torch.global_hooks, is_empty_dict) || std::ranges::any_of(names.hooks, is_hooked);
}

bool is_autocast() {
  const nb::object answer = nb::steal(PyObject_CallNoArgs(torch.is_autocast));
  if (!answer.is_valid()) throw nb::python_error();
  return answer.ptr() != Py_False;
}

bool computes_in_dtype_of(nb::handle x, PyObject* config) {
  if (config == nullptr) return false;
  const nb::object dtype = attribute(config, names.compute_dtype);
  return dtype.is_none() || dtype.is(attribute(x.ptr(), names.dtype));
}

bool is_quantized(PyObject* weight) {
  static PyObject* const type =
      nb::object(nb::module_::import_("qbits.tensor").attr("QuantizedTensor")).release().ptr();
  return weight != nullptr && reinterpret_cast<PyObject*>(Py_TYPE(weight)) == type;
}

}  // namespace

std::optional<LayerTensors> layer_call(nb::handle layer, nb::handle forward, nb::handle x) {
  if (!is_tensor(x.ptr())) return std::nullopt;
  const nb::object attributes = nb::steal(PyObject_GenericGetDict(layer.ptr(), nullptr));
  if (!attributes.is_valid()) throw nb::python_error();
  if (has_replaced(layer, forward, attributes.ptr()) || has_hooks(attributes.ptr()) || is_autocast()) return {};
  if (!computes_in_dtype_of(x, item(attributes.ptr(), names.config))) return {};
  PyObject* const parameters = item(attributes.ptr(), names.parameters);
  PyObject* const weight = item(parameters, names.weight);
  PyObject* const bias = item(parameters, names.bias);
  if (!is_quantized(weight) || bias == nullptr) return {};
  return LayerTensors{nb::borrow(weight), nb::borrow(bias)};
}

void load_layer_call() {
  const auto kept = [](nb::object object) { return object.release().ptr(); };
  const nb::module_ module = nb::module_::import_("torch.nn.modules.module");
  names = {.call = PyUnicode_InternFromString("__call__"),
           .call_impl = PyUnicode_InternFromString("_call_impl"),
           .forward = PyUnicode_InternFromString("forward"),
           .compiled = PyUnicode_InternFromString("_compiled_call_impl"),
           .hooks = {PyUnicode_InternFromString("_forward_hooks"), PyUnicode_InternFromString("_forward_pre_hooks"),
                     PyUnicode_InternFromString("_backward_hooks"), PyUnicode_InternFromString("_backward_pre_hooks")},
           .parameters = PyUnicode_InternFromString("_parameters"),
           .weight = PyUnicode_InternFromString("weight"),
           .bias = PyUnicode_InternFromString("bias"),
           .config = PyUnicode_InternFromString("config"),
           .compute_dtype = PyUnicode_InternFromString("compute_dtype"),
           .dtype = PyUnicode_InternFromString("dtype")};
  torch = {
      .module_type = kept(module.attr("Module")),
      .call = kept(module.attr("Module").attr("_wrapped_call_impl")),
      .call_impl = kept(module.attr("Module").attr("_call_impl")),
      .global_hooks = {kept(module.attr("_global_forward_hooks")), kept(module.attr("_global_forward_pre_hooks")),
                       kept(module.attr("_global_backward_hooks")), kept(module.attr("_global_backward_pre_hooks"))},
      .is_autocast = kept(nb::module_::import_("torch").attr("_C").attr("_is_any_autocast_enabled"))};
}

}  // namespace qbits::bindings
