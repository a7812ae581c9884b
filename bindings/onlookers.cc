#include "onlookers.h"

#include <algorithm>
#include <array>

#include "init.h"
#include "tensor_caster.h"

namespace nb = nanobind;

namespace qbits::bindings {
namespace {

// References for as long as torch is there, which is never unloaded.
struct Torch {
  std::array<PyObject*, 5> onlookers{};  // functions: none looks on where all return 0 or False
  PyObject* forward_ad = nullptr;        // what torch.autograd.forward_ad holds
  PyObject* current_level = nullptr;     // the name there of how many levels of it are active, from 0
  PyObject* profiler = nullptr;          // what torch.autograd.profiler holds
  PyObject* is_profiling = nullptr;      // the name there of whether one runs that sees all threads, too
  PyObject* is_grad_enabled = nullptr;
  PyObject* is_neg = nullptr;
  PyObject* requires_grad = nullptr;  // the name
};
Torch torch;

// The truth of a new reference, or its exception.
bool is_true(PyObject* answer) {
  const nb::object owned = nb::steal(answer);
  if (!owned.is_valid()) throw nb::python_error();
  return PyObject_IsTrue(answer) == 1;
}

bool says_yes(PyObject* function) { return is_true(PyObject_CallNoArgs(function)); }

bool is_forward_ad_active() {
  PyObject* const level = PyDict_GetItemWithError(torch.forward_ad, torch.current_level);
  return level == nullptr || PyLong_AsLong(level) >= 0;
}

bool is_profiling() {
  PyObject* const answer = PyDict_GetItemWithError(torch.profiler, torch.is_profiling);
  return answer != nullptr && PyObject_IsTrue(answer) == 1;
}

bool is_negated(nb::handle tensor) {
  return !tensor.is_none() && is_true(nb::handle(torch.is_neg)(tensor).release().ptr());
}

void load() {
  const auto kept = [](nb::object object) { return object.release().ptr(); };
  const nb::module_ module = nb::module_::import_("torch");
  const nb::object c = module.attr("_C");
  torch.onlookers = {
      kept(c.attr("_len_torch_dispatch_stack")),
      kept(c.attr("_is_torch_function_mode_enabled")),
      kept(c.attr("_are_functorch_transforms_active")),
      kept(c.attr("_is_tracing")),
      kept(module.attr("autograd").attr("_profiler_enabled")),
  };
  torch.forward_ad = kept(nb::module_::import_("torch.autograd.forward_ad").attr("__dict__"));
  torch.current_level = PyUnicode_InternFromString("_current_level");
  torch.profiler = kept(nb::module_::import_("torch.autograd.profiler").attr("__dict__"));
  torch.is_profiling = PyUnicode_InternFromString("_is_profiler_enabled");
  torch.is_grad_enabled = kept(module.attr("is_grad_enabled"));
  torch.is_neg = kept(module.attr("Tensor").attr("is_neg"));
  torch.requires_grad = PyUnicode_InternFromString("requires_grad");
}

}  // namespace

bool bypasses_dispatcher(nb::handle first, std::initializer_list<nb::handle> others) {
  const auto is_plain = [](nb::handle other) { return other.is_none() || is_tensor_or_parameter(other.ptr()); };
  return is_tensor(first.ptr()) && std::ranges::all_of(others, is_plain) &&
         std::ranges::none_of(torch.onlookers, says_yes) && !is_forward_ad_active() && !is_profiling() &&
         !is_negated(first) && std::ranges::none_of(others, is_negated);
}

bool is_grad_enabled() { return says_yes(torch.is_grad_enabled); }

bool requires_grad(nb::handle tensor) {
  return !tensor.is_none() && is_true(PyObject_GetAttr(tensor.ptr(), torch.requires_grad));
}

void init_onlookers(nb::module_& m) {
  using namespace nb::literals;
  load();
  m.def(
      "bypasses_dispatcher",
      [](nb::handle first, nb::handle second, nb::handle third, nb::handle fourth) {
        return bypasses_dispatcher(first, {second, third, fourth});
      },
      "first"_a.none(), "second"_a = nb::none(), "third"_a = nb::none(), "fourth"_a = nb::none(),
      nb::sig("def bypasses_dispatcher(first: object, second: object = None, third: object = None, "
              "fourth: object = None) -> bool"));
}

}  // namespace qbits::bindings
