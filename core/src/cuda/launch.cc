#include "cuda/launch.h"

#include <string>

namespace qbits::cuda {

void fail(cudaError_t status, std::string_view op) {
  static_cast<void>(cudaGetLastError());  // a launch failure would otherwise be reported again by the next caller
  throw Error(ErrorCode::DeviceError, "[" + std::string(op) + "] CUDA: got " + cudaGetErrorName(status) + " (" +
                                          cudaGetErrorString(status) + "), want success");
}

int device_attribute(cudaDeviceAttr attribute, std::string_view op) {
  int device = 0;
  int value = 0;
  check(cudaGetDevice(&device), op);
  check(cudaDeviceGetAttribute(&value, attribute, device), op);
  return value;
}

}  // namespace qbits::cuda
