#include "tensor_caster.h"

#include <new>
#include <optional>
#include <stdexcept>
#include <string>

#include "dlpack_abi.h"
#include "qbits/error.h"

namespace nb = nanobind;

namespace qbits::bindings {
namespace {

struct Torch {
  PyTypeObject* tensor = nullptr;
  PyTypeObject* parameter = nullptr;
  PyObject* dispatch = nullptr;  // the name of what subclasses define to be something else, and what tensors have there
  PyObject* no_dispatch = nullptr;
  const dlpack::ExchangeApi* api = nullptr;
};
Torch torch;

constexpr std::align_val_t kAlignment{64};

const dlpack::ExchangeApi* find_api(nb::handle tensor_type) {
  const nb::object capsule = nb::getattr(tensor_type, dlpack::kExchangeApiAttribute, nb::none());
  if (capsule.is_none()) return nullptr;
  auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kExchangeApiCapsule));
  if (api == nullptr) throw nb::python_error();
  while (api != nullptr && api->major != dlpack::kMajorVersion) api = api->previous;
  return api;
}

std::optional<DType> to_dtype(dlpack::DataType dtype) {
  if (dtype.lanes != 1) return std::nullopt;
  switch (dtype.code << 8 | dtype.bits) {
    case dlpack::kFloat << 8 | 32:
      return DType::Float32;
    case dlpack::kBfloat << 8 | 16:
      return DType::BFloat16;
    case dlpack::kFloat << 8 | 16:
      return DType::Float16;
    case dlpack::kUInt << 8 | 8:
      return DType::UInt8;
    case dlpack::kInt << 8 | 8:
      return DType::Int8;
    case dlpack::kInt << 8 | 32:
      return DType::Int32;
    case dlpack::kInt << 8 | 64:
      return DType::Int64;
    default:
      return std::nullopt;
  }
}

std::optional<Device> to_device(dlpack::Device device) {
  switch (device.type) {
    case dlpack::kCpu:
    case dlpack::kCudaHost:
      return Device{DeviceType::Cpu, 0};
    case dlpack::kCuda:
      return Device{DeviceType::Cuda, device.index};
    default:
      return std::nullopt;
  }
}

bool is_plain_subclass(PyObject* object) {
  if (PyType_IsSubtype(Py_TYPE(object), torch.tensor) == 0) return false;
  PyObject* const own = PyObject_GetAttr(reinterpret_cast<PyObject*>(Py_TYPE(object)), torch.dispatch);
  if (own == nullptr) PyErr_Clear();
  const bool is_plain = own == torch.no_dispatch;
  Py_XDECREF(own);
  return is_plain;
}

bool fill_view(PyObject* object, TensorView& out) noexcept {
  dlpack::Tensor tensor;
  if (torch.api->tensor_from_object(object, &tensor) != 0) {
    PyErr_Clear();
    return false;
  }
  const auto dtype = to_dtype(tensor.dtype);
  const auto device = to_device(tensor.device);
  if (!dtype || !device || tensor.ndim > TensorView::kMaxDims) return false;
  out.dtype = *dtype;
  out.device = *device;
  out.ndim = tensor.ndim;
  bool empty = false;
  for (int i = 0; i < tensor.ndim; ++i) {
    out.shape[i] = tensor.shape[i];
    out.strides[i] = tensor.strides[i];
    empty |= tensor.shape[i] == 0;
  }
  if (tensor.data == nullptr) {
    out.data = nullptr;
    return empty;
  }
  out.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  return true;
}

std::string text(nb::handle object) { return nb::str(object).c_str(); }

// torch puts a stack trace, or a whole tensor, behind what is wrong.
std::string first_line(const std::string& message) { return message.substr(0, message.find('\n')); }

[[noreturn]] void refuse(ErrorCode code, const char* op, const char* argument, const std::string& got,
                         const std::string& want) {
  throw Error(code, "[" + std::string(op) + "] " + argument + ": got " + got + ", want " + want);
}

}  // namespace

void load_torch() {
  const nb::module_ module = nb::module_::import_("torch");
  const nb::object tensor = module.attr("Tensor");
  torch.api = find_api(tensor);
  if (torch.api == nullptr || torch.api->tensor_from_object == nullptr) {
    throw nb::import_error(
        ("qbits needs torch >= 2.10 with DLPack 1, got torch " + text(module.attr("__version__"))).c_str());
  }
  // Both types live as long as torch, which is never unloaded.
  torch.tensor = reinterpret_cast<PyTypeObject*>(tensor.ptr());
  torch.parameter = reinterpret_cast<PyTypeObject*>(nb::object(module.attr("nn").attr("Parameter")).release().ptr());
  tensor.inc_ref();
  torch.dispatch = PyUnicode_InternFromString("__torch_dispatch__");
  torch.no_dispatch = nb::object(tensor.attr("__torch_dispatch__")).release().ptr();
}

bool is_tensor(PyObject* object) noexcept { return Py_TYPE(object) == torch.tensor; }

bool is_tensor_or_parameter(PyObject* object) noexcept {
  return is_tensor(object) || Py_TYPE(object) == torch.parameter;
}

bool view_tensor(PyObject* object, TensorView& out) noexcept {
  return is_tensor_or_parameter(object) && fill_view(object, out);
}

bool view_subclass(PyObject* object, TensorView& out) noexcept {
  return (is_tensor_or_parameter(object) || is_plain_subclass(object)) && fill_view(object, out);
}

void throw_refusal(PyObject* object, const char* op, const char* argument, const char* dtypes, bool subclasses) {
  constexpr auto kWrongType = ErrorCode::InvalidType;
  if (!is_tensor_or_parameter(object) && !(subclasses && is_plain_subclass(object))) {
    refuse(kWrongType, op, argument, text(nb::handle(object).type().attr("__name__")),
           "torch.Tensor or torch.nn.Parameter");
  }
  dlpack::Tensor tensor;
  if (torch.api->tensor_from_object(object, &tensor) != 0) {
    const nb::python_error error;
    constexpr const char* kWanted = "a dense tensor on cpu or cuda";
    const std::string layout = text(nb::handle(object).attr("layout"));
    if (layout != "torch.strided") refuse(kWrongType, op, argument, "a tensor of layout " + layout, kWanted);
    refuse(kWrongType, op, argument, "a tensor without plain memory (" + first_line(text(error.value())) + ")",
           kWanted);
  }
  if (!to_dtype(tensor.dtype)) {
    refuse(kWrongType, op, argument, "dtype " + text(nb::handle(object).attr("dtype")), dtypes);
  }
  if (!to_device(tensor.device)) {
    refuse(kWrongType, op, argument, "a tensor on " + text(nb::handle(object).attr("device")), "cpu or cuda");
  }
  if (tensor.ndim > TensorView::kMaxDims) {
    refuse(ErrorCode::InvalidArgument, op, argument, std::to_string(tensor.ndim) + " dimensions",
           "at most " + std::to_string(TensorView::kMaxDims));
  }
  refuse(kWrongType, op, argument, "a tensor without memory (functional, or inside a torch.func transform)",
         "a tensor with data");
}

Stream current_stream(Device device) {
  Stream stream;
  if (device.type == DeviceType::Cuda && torch.api->current_stream(dlpack::kCuda, device.index, &stream.handle) != 0) {
    throw nb::python_error();
  }
  return stream;
}

Scratch::Scratch(int64_t bytes, Device device) : view_(TensorView::contiguous(nullptr, DType::UInt8, {bytes}, device)) {
  if (bytes == 0) return;
  if (device.type == DeviceType::Cpu) {  // as torch's allocator does, in a tenth of the time
    view_.data = ::operator new(static_cast<size_t>(bytes), kAlignment, std::nothrow);
    if (view_.data == nullptr) throw std::runtime_error("can't allocate memory: " + std::to_string(bytes) + " bytes");
    return;
  }
  dlpack::Tensor prototype{.data = nullptr,
                           .device = {dlpack::kCuda, device.index},
                           .ndim = 1,
                           .dtype = {dlpack::kUInt, 8, 1},
                           .shape = view_.shape.data(),
                           .strides = nullptr,
                           .byte_offset = 0};
  std::string error;
  dlpack::ManagedTensor* managed = nullptr;
  const int status = torch.api->allocate(
      &prototype, &managed, &error,
      [](void* context, const char*, const char* message) { *static_cast<std::string*>(context) = message; });
  if (status != 0) throw std::runtime_error(error);
  owner_ = managed;
  view_.data = static_cast<char*>(managed->tensor.data) + managed->tensor.byte_offset;
}

Scratch::~Scratch() {
  if (auto* managed = static_cast<dlpack::ManagedTensor*>(owner_)) {
    managed->deleter(managed);
  } else {
    ::operator delete(view_.data, kAlignment);
  }
}

}  // namespace qbits::bindings
