#include "ops/runtime.h"

#include <cuda_runtime.h>

#include <sstream>

// QBITS_CUDA_ARCHS_TEXT, "9.0a" style and comma-separated, comes from CMake.

namespace qbits::cuda {
namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

std::vector<std::string> archs() {
  std::vector<std::string> out;
  std::istringstream text(QBITS_CUDA_ARCHS_TEXT);
  for (std::string arch; std::getline(text, arch, ',');) out.push_back(arch);
  return out;
}

std::string unavailable_reason() {
  const int driver = driver_version();
  if (driver == 0) return "no NVIDIA driver was found on this machine";
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return {};
  static_cast<void>(cudaGetLastError());
  if (status == cudaErrorInsufficientDriver) {
    return "the NVIDIA driver supports CUDA " + version_text(driver) + " but this libqbits was built with CUDA " +
           version_text(runtime_version()) + ": update the driver";
  }
  if (status == cudaSuccess || status == cudaErrorNoDevice) return "the NVIDIA driver shows no CUDA device";
  return std::string("the CUDA runtime failed to start: ") + cudaGetErrorString(status);
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace qbits::cuda
