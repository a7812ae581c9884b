#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "float_bits.h"
#include "qbits/tensor.h"

// The CPU and the GPU run the same call on the same tensors and must write the same bits.

namespace qbits::test {

inline void check(cudaError_t status) { ASSERT_EQ(status, cudaSuccess) << cudaGetErrorString(status); }

// A tensor in host memory, of which each device gets its own copy.
struct HostTensor {
  DType dtype = DType::Float32;
  std::vector<int64_t> shape;
  std::vector<uint8_t> bytes;

  HostTensor(DType type, std::vector<int64_t> dims);          // every byte 0xCD
  HostTensor(Buffer buffer, std::vector<int64_t> dims = {});  // one-dimensional by default
  static HostTensor floats(const std::vector<float>& values);

  int64_t numel() const;
  TensorView view();
};

// Device memory that begins `offset` elements into its allocation and ends with it, so that pointers are only as
// aligned as a tensor's storage offset leaves them and memcheck sees every step past the end.
class DeviceTensor {
 public:
  DeviceTensor(const HostTensor& host, int64_t offset);
  ~DeviceTensor();
  DeviceTensor(DeviceTensor&& other) noexcept;
  DeviceTensor(const DeviceTensor&) = delete;
  TensorView view() const { return view_; }
  std::vector<uint8_t> download() const;

 private:
  void* allocation_ = nullptr;
  TensorView view_;
};

using Tensors = std::vector<TensorView>;
// in, out, stream
using Op = std::function<void(const Tensors&, const Tensors&, Stream)>;

enum class Launch { DefaultStream, SideStream, Graph };

struct Run {
  int64_t offset = 0;  // elements, for every tensor
  Launch launch = Launch::DefaultStream;
};

// Runs `op` on the CPU, which fills `out`, and on the GPU; expects equal bits and untouched inputs.
void expect_same_bits(const std::string& what, std::vector<HostTensor>& in, std::vector<HostTensor>& out, const Op& op,
                      Run run = {});

// Random normals with the odd bits of real data: runs of zeros, a subnormal, an outlier; NaN and infinities where
// `finite` is false.
HostTensor test_data(DType dtype, std::vector<int64_t> shape, uint32_t seed, bool finite = true);

// Skips the test where there is no GPU; fails it where the library gives no reason for that.
bool has_gpu();
#define QBITS_NEEDS_GPU() \
  if (!::qbits::test::has_gpu()) GTEST_SKIP() << "no CUDA device"

// The same for compute capability 9.0.
bool has_hopper();
#define QBITS_NEEDS_HOPPER() \
  if (!::qbits::test::has_gpu() || !::qbits::test::has_hopper()) GTEST_SKIP() << "no device of compute capability 9.0"

inline constexpr DType kFloats[] = {DType::Float32, DType::BFloat16, DType::Float16};

}  // namespace qbits::test
