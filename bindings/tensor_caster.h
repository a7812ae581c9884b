#pragma once

#include <nanobind/nanobind.h>

#include "qbits/tensor.h"

namespace qbits::bindings {

// A tensor argument. Conversion never fails, so that the refusal can name the op and the argument.
struct TensorArg {
  TensorView view;
  PyObject* refused = nullptr;  // borrowed; null if `view` is good
};

// Looks up torch's types and its exchange API once, at import.
void load_torch();

// Exactly a torch.Tensor; and that or a torch.nn.Parameter.
bool is_tensor(PyObject* object) noexcept;
bool is_tensor_or_parameter(PyObject* object) noexcept;

// Fills `out` from exactly a torch.Tensor or torch.nn.Parameter: every other type that offers the exchange
// API (FakeTensor, DTensor, functional tensors) would hand out null or foreign data. Never throws and leaves
// no Python error. Neg and conj bits are ignored: the dispatcher has resolved them before _C is called.
bool view_tensor(PyObject* object, TensorView& out) noexcept;

// The same, and from subclasses without a __torch_dispatch__ of their own: their memory is that of a torch.Tensor.
bool view_subclass(PyObject* object, TensorView& out) noexcept;

// Throws the Error that says why view_tensor, or view_subclass, refused `object`, with the dtypes that it could have
// had.
[[noreturn]] void throw_refusal(PyObject* object, const char* op, const char* argument,
                                const char* dtypes = "float32, bfloat16, float16, uint8, int8, int32 or int64",
                                bool subclasses = false);

// torch's current stream of `device`; the default Stream for the CPU.
Stream current_stream(Device device);

// Bytes for one call; on CUDA from torch's allocator, so that kernels launched on the current stream may use them
// after it is gone.
class Scratch {
 public:
  // Throws std::runtime_error if there is no memory.
  Scratch(int64_t bytes, Device device);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  const TensorView& view() const { return view_; }

 private:
  TensorView view_;
  void* owner_ = nullptr;
};

}  // namespace qbits::bindings

namespace nanobind::detail {

template <>
struct type_caster<qbits::bindings::TensorArg> {
  NB_TYPE_CASTER(qbits::bindings::TensorArg, const_name("torch.Tensor"))

  bool from_python(handle source, uint32_t, cleanup_list*) noexcept {
    value.refused = qbits::bindings::view_tensor(source.ptr(), value.view) ? nullptr : source.ptr();
    return true;
  }
};

}  // namespace nanobind::detail
