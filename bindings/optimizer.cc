#include "qbits/optim.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "define.h"
#include "init.h"
#include "input.h"
#include "qbits/error.h"
#include "qbits/pager.h"

namespace nb = nanobind;

// A step gathers its tensors here, from an optimizer's own groups and state: in Python this would take longer than the
// GPU does.

namespace qbits::bindings {
namespace {

constexpr const char* kOp = "optimizer_step";
constexpr const char* kFloats = "float32, bfloat16 or float16";

// What attributes and keys are looked up by.
struct Names {
  nb::object grad, params, step, state1, state2, absmax1, absmax2, kahan_comp, contiguous, copy, increment_version;
  nb::object local_tensor, placements;
};

const Names& names() {
  static const Names* const names = [] {
    const auto intern = [](const char* text) { return nb::steal(PyUnicode_InternFromString(text)); };
    return new Names{.grad = intern("grad"),
                     .params = intern("params"),
                     .step = intern("step"),
                     .state1 = intern("state1"),
                     .state2 = intern("state2"),
                     .absmax1 = intern("absmax1"),
                     .absmax2 = intern("absmax2"),
                     .kahan_comp = intern("kahan_comp"),
                     .contiguous = intern("contiguous"),
                     .copy = intern("copy_"),
                     .increment_version = nb::module_::import_("torch._C").attr("_increment_version"),
                     .local_tensor = intern("_local_tensor"),
                     .placements = intern("placements")};
  }();
  return *names;
}

// Borrowed; null where there is none.
nb::handle find(nb::handle dict, nb::handle key) {
  PyObject* const found = PyDict_GetItemWithError(dict.ptr(), key.ptr());
  if (found == nullptr && PyErr_Occurred() != nullptr) throw nb::python_error();
  return found;
}

// What this process has of a DTensor, and any other object itself. Its to_local() would take longer than the rest of
// the gathering.
nb::object local(nb::handle tensor) {
  PyObject* const found = PyObject_GetAttr(tensor.ptr(), names().local_tensor.ptr());
  if (found != nullptr) return nb::steal(found);
  PyErr_Clear();
  return nb::borrow(tensor);
}

// Tensors that users bring may be of subclasses.
TensorView view_float(nb::handle tensor, const char* argument) {
  TensorView view;
  if (!view_subclass(tensor.ptr(), view)) throw_refusal(tensor.ptr(), kOp, argument, kFloats, true);
  return view;
}

// As view(), of what this process has.
TensorView local_view(nb::handle tensor, const char* argument) {
  TensorView view;
  if (view_subclass(tensor.ptr(), view)) return view;
  const nb::object own = local(tensor);
  if (!view_subclass(own.ptr(), view)) throw_refusal(own.ptr(), kOp, argument, "float32 or uint8", true);
  return view;
}

// The part of the gradient that belongs to this process' part of a DTensor.
nb::object local_grad(nb::handle param, nb::object grad) {
  const nb::object placements = param.attr(names().placements);
  const nb::object found = nb::getattr(grad, names().placements, nb::none());
  if (found.is_none()) {
    throw Error(ErrorCode::InvalidType,
                "[" + std::string(kOp) + "] grad: got a plain tensor, want a DTensor, as param is");
  }
  if (!found.equal(placements)) {
    grad = grad.attr("redistribute")(nb::none(), placements);
  }
  nb::object own = local(grad);
  TensorView ready;
  return view_tensor(own.ptr(), ready) ? own : nb::object(own.attr("wait")());  // its communication may still run
}

bool has_state(nb::handle state, const OptimizerAlgorithm& algorithm) {
  return state.is_valid() && find(state, names().step).is_valid() &&
         (algorithm.first == 0 || find(state, names().state1).is_valid()) &&
         (algorithm.second == 0 || find(state, names().state2).is_valid());
}

// Finds the states of parameters. They mostly lie in the order of the groups, where the next one takes no hash of a
// tensor, a call of Python that costs more than all else that is looked up.
class States {
 public:
  explicit States(nb::handle dict) : dict_(dict) { advance(); }

  // Borrowed; null where there is none.
  nb::handle of(nb::handle param) {
    if (param.ptr() != key_) return find(dict_, param);
    PyObject* const found = value_;
    advance();
    return found;
  }

 private:
  void advance() {
    if (PyDict_Next(dict_.ptr(), &position_, &key_, &value_) == 0) key_ = nullptr;
  }

  nb::handle dict_;
  Py_ssize_t position_ = 0;
  PyObject* key_ = nullptr;
  PyObject* value_ = nullptr;
};

// The tensors of one device, what keeps them alive, and what to do with them afterwards.
class Gathering {
 public:
  Gathering(const OptimizerStep& choices, Pager* pager, size_t most) : step(choices), pager_(pager) {
    tensors_.reserve(most);
    kept_.reserve(7 * most);
  }

  // `param` and `grad` are what this process has of them.
  void add(nb::handle param, TensorView param_view, const nb::object& grad, nb::handle state, int64_t row, uint32_t id,
           int64_t offset = 0, nb::handle grad_scale = {}) {
    updated_.append(param);
    if (!param_view.is_contiguous()) {
      nb::object copy = nb::steal(PyObject_CallMethodObjArgs(param.ptr(), names().contiguous.ptr(), nullptr));
      if (!copy.is_valid()) throw nb::python_error();
      param_view = view_float(copy, "param");
      copied_.emplace_back(nb::borrow(param), std::move(copy));
    }
    OptimizerTensor& tensor = tensors_.emplace_back();
    tensor.param = param_view;
    nb::object row_major = nb::borrow(grad);
    tensor.grad = view_float(row_major, "grad");
    if (!tensor.grad.is_contiguous()) {
      row_major = grad.attr(names().contiguous)();
      tensor.grad = view_float(row_major, "grad");
    }
    kept_.push_back(std::move(row_major));
    const Names& key = names();
    // Kept, for other threads may put others into their place while the step runs.
    const auto fill_view = [&](const nb::object& name, const char* argument, std::optional<TensorView>& out) {
      const nb::handle found = find(state, name);
      if (!found.is_valid()) return;
      out = local_view(found, argument);
      kept_.push_back(nb::borrow(found));
    };
    if (step.algorithm->first > 0) fill_view(key.state1, "state1", tensor.state1);
    if (step.algorithm->second > 0) fill_view(key.state2, "state2", tensor.state2);
    if (tensor.state1 && tensor.state1->dtype == DType::UInt8) {
      fill_view(key.absmax1, "absmax1", tensor.absmax1);
      if (step.algorithm->second > 0) fill_view(key.absmax2, "absmax2", tensor.absmax2);
    }
    if (param_view.dtype != DType::Float32) fill_view(key.kahan_comp, "kahan_comp", tensor.compensation);
    tensor.row = row_of(tensor, *step.algorithm, param_view);
    const nb::handle step_count = find(state, key.step);
    tensor.step = local_view(step_count, "step");
    kept_.push_back(nb::borrow(step_count));
    tensor.offset = offset;
    if (grad_scale.is_valid()) tensor.grad_scale = view(grad_scale, kOp, "grad_scale");
    tensor.group = row;
    tensor.id = id;
  }

  void run() {
    const Device device = step.groups.device;
    const Stream stream = current_stream(device);
    {
      const nb::gil_scoped_release release;
      const Scratch scratch(optimizer_step_workspace(step, tensors_), device);
      if (pager_ != nullptr) {
        pager_->step(step, tensors_, scratch.view(), stream);
      } else {
        qbits::optimizer_step(step, tensors_, scratch.view(), stream);
      }
    }
    for (auto& [param, copy] : copied_) {  // parameters that lie with gaps
      const nb::object done =
          nb::steal(PyObject_CallMethodObjArgs(param.ptr(), names().copy.ptr(), copy.ptr(), nullptr));
      if (!done.is_valid()) throw nb::python_error();
    }
    if (updated_.size() > 0) names().increment_version(updated_);
  }

  OptimizerStep step;

 private:
  // Scales of two dimensions belong to rows.
  static int64_t row_of(const OptimizerTensor& tensor, const OptimizerAlgorithm& algorithm, const TensorView& param) {
    const int lead = algorithm.first > 1 ? 1 : 0;
    const bool by_row = tensor.absmax1 && tensor.absmax1->ndim - lead == 2 && param.numel() > 0;
    return by_row && param.ndim > 0 ? param.numel() / param.shape[0] : 0;
  }

  Pager* pager_;
  std::vector<OptimizerTensor> tensors_;
  nb::list updated_;
  std::vector<nb::object> kept_;
  std::vector<std::pair<nb::object, nb::object>> copied_;
};

// The choice called `name`, one of `known` in the order of its enumerators.
template <class Enum, size_t n>
Enum choice(const char* argument, std::string_view name, const std::array<std::string_view, n>& known) {
  std::string all;
  for (size_t i = 0; i < n; ++i) {
    if (known[i] == name) return static_cast<Enum>(i);
    all.append(all.empty() ? "" : ", ").append(known[i]);
  }
  throw Error(ErrorCode::InvalidArgument,
              "[" + std::string(kOp) + "] " + argument + ": got " + std::string(name) + ", want one of " + all);
}

constexpr std::array<std::string_view, 3> kDecays = {"coupled", "before", "after"};
constexpr std::array<std::string_view, 3> kScalings = {"none", "trust_ratio", "max_unorm"};

// What the call needs on one device: (groups, skipped, grad_scale, found_inf, pager).
Gathering on_device(OptimizerStep step, nb::handle device, size_t most) {
  const nb::tuple parts = nb::borrow<nb::tuple>(device);
  step.groups = view(parts[0], kOp, "groups");
  step.skipped = view(parts[1], kOp, "skipped");
  step.grad_scale = optional_view(parts[2], kOp, "grad_scale");
  step.found_inf = optional_view(parts[3], kOp, "found_inf");
  return {step, pager_of(parts[4]), most};
}

// One step of the parameters that have gradients. `devices` holds what on_device takes, for each device; `rows` names
// the row in `groups` of parameters that do not have their group's, `offsets` the elements before the part of a DTensor
// that this process has, `grad_scales` what single gradients are divided by. Returns the group and parameter of those
// that lack state or a device; if there are any, nothing has been done.
nb::list optimizer_step(const nb::list& param_groups, const nb::dict& state, nb::handle rows, nb::handle offsets,
                        nb::handle grad_scales, const nb::list& devices, std::string_view algorithm,
                        std::string_view decay, std::string_view scaling, bool stochastic_rounding, uint64_t seed) {
  const OptimizerStep choices{.algorithm = &optimizer_algorithm(algorithm),
                              .decay = choice<Decay>("decay", decay, kDecays),
                              .scaling = choice<LayerScaling>("scaling", scaling, kScalings),
                              .stochastic_rounding = stochastic_rounding,
                              .seed = seed};
  std::vector<Gathering> gatherings;
  size_t most = 0;
  for (nb::handle group : param_groups) most += nb::len(find(group, names().params));
  for (nb::handle device : devices) gatherings.push_back(on_device(choices, device, most));
  nb::list missing;
  States states(state);
  uint32_t id = 0;
  for (size_t g = 0; g < param_groups.size(); ++g) {
    const nb::object params = nb::borrow(find(param_groups[g], names().params));
    for (Py_ssize_t i = 0, count = PyList_Size(params.ptr()); i < count; ++i, ++id) {
      const nb::handle param = PyList_GetItem(params.ptr(), i);
      const nb::handle own = states.of(param);
      const nb::object grad = nb::steal(PyObject_GetAttr(param.ptr(), names().grad.ptr()));
      if (!grad.is_valid()) throw nb::python_error();
      if (grad.is_none()) continue;
      nb::object plain = nb::borrow(param);
      TensorView param_view;
      const bool is_whole = view_subclass(param.ptr(), param_view);
      if (!is_whole) {
        plain = local(param);
        param_view = view_float(plain, "param");
      }
      const auto gathering = std::find_if(gatherings.begin(), gatherings.end(), [&](const Gathering& candidate) {
        return candidate.step.groups.device == param_view.device;
      });
      if (gathering == gatherings.end() || !has_state(own, *choices.algorithm)) {
        missing.append(nb::make_tuple(g, param));
      } else if (missing.size() == 0) {
        const nb::handle row = rows.is_none() ? nb::handle() : find(rows, param);
        const nb::handle offset = offsets.is_none() ? nb::handle() : find(offsets, param);
        gathering->add(plain, param_view, is_whole ? grad : local_grad(param, grad), own,
                       row.is_valid() ? nb::cast<int64_t>(row) : static_cast<int64_t>(g), id,
                       offset.is_valid() ? nb::cast<int64_t>(offset) : 0,
                       grad_scales.is_none() ? nb::handle() : find(grad_scales, param));
      }
    }
  }
  if (missing.size() > 0) return missing;
  for (Gathering& gathering : gatherings) gathering.run();
  return missing;
}

// One step of tensors on one device that an optimizer does not have as parameters: for each its gradient, its state,
// its row in `groups`, its id and, unless there are none, what its gradient is divided by. `device` holds what
// on_device takes.
void optimizer_step_tensors(const nb::list& params, const nb::list& grads, const nb::list& states,
                            const std::vector<int64_t>& rows, const std::vector<uint32_t>& ids, nb::handle grad_scales,
                            const nb::tuple& device, std::string_view algorithm, std::string_view decay,
                            bool stochastic_rounding, uint64_t seed) {
  OptimizerStep choices{.algorithm = &optimizer_algorithm(algorithm),
                        .decay = choice<Decay>("decay", decay, kDecays),
                        .stochastic_rounding = stochastic_rounding,
                        .seed = seed};
  Gathering gathering = on_device(choices, device, rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    gathering.add(params[i], view_float(params[i], "param"), grads[i], states[i], rows[i], ids.at(i), 0,
                  grad_scales.is_none() ? nb::handle() : nb::handle(PyList_GetItem(grad_scales.ptr(), i)));
  }
  gathering.run();
}

}  // namespace

void init_optimizer(nb::module_& m) {
  using namespace nb::literals;
  m.def("optimizer_step", &optimizer_step, "param_groups"_a, "state"_a, "rows"_a.none(), "offsets"_a.none(),
        "grad_scales"_a.none(), "devices"_a, "algorithm"_a, "decay"_a, "scaling"_a, "stochastic_rounding"_a, "seed"_a,
        nb::sig(
            "def optimizer_step(param_groups: list[dict], state: dict, rows: dict | None, offsets: dict | None, "
            "grad_scales: dict | None, "
            "devices: list[tuple], algorithm: str, decay: str, scaling: str, stochastic_rounding: bool, seed: int) -> "
            "list[tuple[int, torch.Tensor]]"));
  m.def("optimizer_step_tensors", &optimizer_step_tensors, "params"_a, "grads"_a, "states"_a, "rows"_a, "ids"_a,
        "grad_scales"_a.none(), "device"_a, "algorithm"_a, "decay"_a, "stochastic_rounding"_a, "seed"_a,
        nb::sig("def optimizer_step_tensors(params: list[torch.Tensor], grads: list[torch.Tensor], "
                "states: list[dict], rows: list[int], ids: list[int], grad_scales: list[torch.Tensor] | None, "
                "device: tuple, algorithm: str, decay: str, stochastic_rounding: bool, seed: int) -> None"));
  m.def(
      "write_optimizer_groups",
      [](const std::vector<double>& values, nb::handle groups) {
        const TensorView table = view(groups, "write_optimizer_groups", "groups");
        write_optimizer_groups(values, table, current_stream(table.device));
      },
      "values"_a, "groups"_a, nb::sig("def write_optimizer_groups(values: list[float], groups: torch.Tensor) -> None"));
  // By name: the formula, and the numbers an element has in state1 and state2.
  m.def(
      "optimizer_algorithms",
      [] {
        nb::dict all;
        for (const OptimizerAlgorithm& a : optimizer_algorithms()) {
          all[nb::str(a.name.data(), a.name.size())] = nb::make_tuple(a.summary, a.first, a.second);
        }
        return all;
      },
      nb::sig("def optimizer_algorithms() -> dict[str, tuple[str, int, int]]"));
  m.def("optimizer_fields", [] {
    const auto fields = optimizer_fields();
    return std::vector<std::string_view>(fields.begin(), fields.end());
  });
  m.attr("OPTIMIZER_FIELDS") = kOptimizerFields;
  m.attr("STATE_BLOCK_SIZE") = kStateBlockSize;
}

}  // namespace qbits::bindings
