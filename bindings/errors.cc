#include <nanobind/nanobind.h>

#include "init.h"
#include "qbits/error.h"

namespace qbits::bindings {
namespace {

PyObject* python_type(ErrorCode code) {
  switch (code) {
    case ErrorCode::InvalidArgument:
      return PyExc_ValueError;
    case ErrorCode::InvalidIndex:
      return PyExc_IndexError;
    case ErrorCode::InvalidType:
      return PyExc_TypeError;
    case ErrorCode::Unsupported:
      return PyExc_NotImplementedError;
    case ErrorCode::DeviceError:
      return PyExc_RuntimeError;
  }
  return PyExc_RuntimeError;
}

}  // namespace

// std::bad_alloc becomes MemoryError by nanobind's own translator.
void init_errors() {
  nanobind::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    try {
      std::rethrow_exception(pointer);
    } catch (const Error& error) {
      PyErr_SetString(python_type(error.code()), error.what());
    }
  });
}

}  // namespace qbits::bindings
