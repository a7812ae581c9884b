#include "cuda/device.h"

#include <cuda_runtime.h>

#include <set>
#include <utility>
#include <vector>

#include "cuda/launch.h"

namespace qbits::cuda {
namespace {

int attribute(cudaDeviceAttr attribute, int device, std::string_view op) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, device), op);
  return value;
}

std::vector<DeviceFacts> all_devices(std::string_view op) {
  int count = 0;
  check(cudaGetDeviceCount(&count), op);
  std::vector<DeviceFacts> devices;
  for (int i = 0; i < count; ++i) {
    devices.push_back({.compute_capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, i, op) +
                                             attribute(cudaDevAttrComputeCapabilityMinor, i, op),
                       .sm_count = attribute(cudaDevAttrMultiProcessorCount, i, op),
                       .shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, i, op)});
  }
  return devices;
}

}  // namespace

const DeviceFacts& device_facts(Device device, std::string_view op) {
  static const std::vector<DeviceFacts> devices = all_devices(op);
  if (device.index < 0 || static_cast<size_t>(device.index) >= devices.size()) fail(cudaErrorInvalidDevice, op);
  return devices[device.index];
}

void allow_shared_memory(const void* kernel, std::string_view op) {
  thread_local std::set<std::pair<const void*, int>> allowed;
  int device = 0;
  check(cudaGetDevice(&device), op);
  if (allowed.contains({kernel, device})) return;
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), op);
  const int bytes = device_facts({DeviceType::Cuda, device}, op).shared_bytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             bytes - static_cast<int>(attributes.sharedSizeBytes)),
        op);
  allowed.emplace(kernel, device);
}

}  // namespace qbits::cuda
