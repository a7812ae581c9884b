#include "qbits/tensor.h"

#include "qbits/error.h"

namespace qbits {

std::string to_string(Device device) {
  return device.type == DeviceType::Cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

TensorView TensorView::contiguous(void* data, DType dtype, std::span<const int64_t> shape, Device device) {
  if (shape.size() > kMaxDims) {
    throw Error(ErrorCode::InvalidArgument, "[tensor] dimensions: got " + std::to_string(shape.size()) +
                                                ", want at most " + std::to_string(kMaxDims));
  }
  TensorView view{.data = data, .dtype = dtype, .device = device, .ndim = static_cast<int>(shape.size())};
  int64_t stride = 1;
  for (int i = view.ndim - 1; i >= 0; --i) {
    if (shape[i] < 0) {
      throw Error(ErrorCode::InvalidArgument,
                  "[tensor] shape: got size " + std::to_string(shape[i]) + ", want at least 0");
    }
    view.shape[i] = shape[i];
    view.strides[i] = stride;
    if (__builtin_mul_overflow(stride, shape[i] > 0 ? shape[i] : 1, &stride)) {
      throw Error(ErrorCode::InvalidArgument, "[tensor] shape: got more than 2^63 - 1 elements, want fewer");
    }
  }
  return view;
}

int64_t TensorView::numel() const {
  int64_t n = 1;
  for (int i = 0; i < ndim; ++i) n *= shape[i];
  return n;
}

bool TensorView::is_contiguous() const {
  if (numel() == 0) return true;
  int64_t expected = 1;
  for (int i = ndim - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

std::string TensorView::describe() const {
  std::string text(name(dtype));
  text += '[';
  for (int i = 0; i < ndim; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "] on " + to_string(device);
}

}  // namespace qbits
