#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "qbits/dtype.h"
#include "qbits/export.h"

namespace qbits {

enum class DeviceType : uint8_t { Cpu, Cuda };

struct Device {
  DeviceType type = DeviceType::Cpu;
  int index = 0;
  bool operator==(const Device&) const = default;
};

// "cpu" or "cuda:1".
QBITS_API std::string to_string(Device device);

// A cudaStream_t, opaque so that no caller needs CUDA headers. The default is the legacy default
// stream, which every op accepts and none chooses by itself. Ignored for tensors on the CPU.
struct Stream {
  void* handle = nullptr;
};

// A tensor somebody else owns. Strides are in elements. Valid only while the owner keeps `data`.
struct QBITS_API TensorView {
  static constexpr int kMaxDims = 8;

  void* data = nullptr;
  DType dtype = DType::Float32;
  Device device;
  int ndim = 0;
  std::array<int64_t, kMaxDims> shape{};
  std::array<int64_t, kMaxDims> strides{};

  // Row-major view of `data`. Throws InvalidArgument over kMaxDims dimensions or for a negative one.
  static TensorView contiguous(void* data, DType dtype, std::span<const int64_t> shape, Device device = {});
  static TensorView contiguous(void* data, DType dtype, std::initializer_list<int64_t> shape, Device device = {}) {
    return contiguous(data, dtype, std::span<const int64_t>(shape.begin(), shape.size()), device);
  }

  int64_t numel() const;
  bool is_contiguous() const;
  // "float32[3, 5] on cpu", for messages.
  std::string describe() const;

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace qbits
