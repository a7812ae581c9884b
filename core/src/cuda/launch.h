#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <cstdint>
#include <string_view>
#include <utility>

#include "ops/ceil_div.h"
#include "qbits/error.h"
#include "qbits/tensor.h"

// What every launcher needs: the tensor's device made current and restored, failures as qbits::Error,
// and launches whose status is their own.

namespace qbits::cuda {

[[noreturn]] void fail(cudaError_t status, std::string_view op);

inline void check(cudaError_t status, std::string_view op) {
  if (status != cudaSuccess) [[unlikely]] {
    fail(status, op);
  }
}

// Makes `device` current until the end of the scope; costs one thread-local read where it already is.
class DeviceGuard {
 public:
  DeviceGuard(Device device, std::string_view op) {
    check(cudaGetDevice(&previous_), op);
    if (previous_ == device.index) return;
    check(cudaSetDevice(device.index), op);
    switched_ = true;
  }
  ~DeviceGuard() {
    if (switched_) static_cast<void>(cudaSetDevice(previous_));
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool switched_ = false;
};

inline cudaStream_t native(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

// Facts of the current device.
int device_attribute(cudaDeviceAttr attribute, std::string_view op);

struct LaunchShape {
  int64_t blocks;
  int threads;
  size_t shared_bytes = 0;
  int cluster = 1;           // blocks of a thread block cluster
  bool overlaps = false;     // the kernel waits by itself for those before it (programmatic dependent launch)
  bool cooperative = false;  // all thread blocks run at once and may wait for one another
};

// Runs `kernel` on `stream`; the status checked is this launch's own, not an earlier call's.
template <class... Params, class... Args>
void launch(std::string_view op, void (*kernel)(Params...), LaunchShape shape, Stream stream, Args&&... args) {
  if (shape.blocks > INT32_MAX) fail(cudaErrorInvalidConfiguration, op);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = native(stream);
  cudaLaunchAttribute attributes[3];
  config.attrs = attributes;
  if (shape.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  }
  if (shape.overlaps) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cooperative) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...), op);
}

// Thread blocks of `kernel` that the current device runs at once.
template <class Kernel>
int64_t resident_blocks(Kernel* kernel, int threads, size_t shared_bytes, std::string_view op) {
  int per_multiprocessor = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, shared_bytes), op);
  return int64_t{per_multiprocessor} * device_attribute(cudaDevAttrMultiProcessorCount, op);
}

inline bool is_aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// What the kernels that copy 16 bytes at a time read and write so.
template <class... Pointers>
bool all_on_16_bytes(Pointers... pointers) {
  return (is_aligned(pointers, 16) && ...);
}

// log2 of a power of two, -1 for other numbers.
constexpr int exact_log2(int64_t x) {
  return std::has_single_bit(static_cast<uint64_t>(x)) ? std::countr_zero(static_cast<uint64_t>(x)) : -1;
}

}  // namespace qbits::cuda
