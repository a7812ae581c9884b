#include <cmath>

#include "device.h"
#include "qbits/int8.h"

namespace qbits::test {
namespace {

// Normal numbers, some of them large, and, where `finite` is false, columns with NaN and infinities.
HostTensor matrix_with_outliers(DType dtype, int64_t rows, int64_t cols, bool finite, uint32_t seed) {
  Buffer x = random_buffer(dtype, rows * cols, seed);
  for (int64_t i = 5; i < rows * cols; i += 97) x.set(i, i % 2 == 0 ? 40.0F : -6.0F);
  for (int64_t m = 0; m < rows && cols > 2; ++m) x.set(m * cols + 2, 0.0F);
  if (!finite && rows * cols > 8) {
    x.set(rows * cols / 2, NAN);
    x.set(rows * cols - 1, INFINITY);
    x.set(rows * cols / 3, -INFINITY);
  }
  return HostTensor(std::move(x), {rows, cols});
}

void expect_same(HostTensor x, float threshold, Run run = {}) {
  const int64_t rows = x.shape[0];
  const int64_t cols = x.shape[1];
  const std::string what = std::string(name(x.dtype)) + " [" + std::to_string(rows) + ", " + std::to_string(cols) +
                           "] threshold " + std::to_string(threshold) + " offset " + std::to_string(run.offset);
  std::vector<HostTensor> in = {std::move(x)};
  std::vector<HostTensor> out = {HostTensor(DType::Int8, {rows, cols}), HostTensor(DType::Float32, {cols})};
  void* device_workspace = nullptr;
  const int64_t bytes = quantize_int8_colwise_workspace(rows, cols, {DeviceType::Cuda, 0});
  check(cudaMalloc(&device_workspace, static_cast<size_t>(std::max<int64_t>(bytes, 1))));
  check(cudaMemset(device_workspace, 0xcd, static_cast<size_t>(bytes)));
  std::vector<uint8_t> host_workspace(static_cast<size_t>(quantize_int8_colwise_workspace(rows, cols, {})));
  expect_same_bits(
      what, in, out,
      [&](const Tensors& i, const Tensors& o, Stream stream) {
        const bool cuda = i[0].device.type == DeviceType::Cuda;
        const TensorView workspace =
            cuda ? TensorView::contiguous(device_workspace, DType::UInt8, {bytes}, i[0].device)
                 : TensorView::contiguous(host_workspace.data(), DType::UInt8, {std::ssize(host_workspace)});
        quantize_int8_colwise(i[0], threshold, o[0], o[1], workspace, stream);
      },
      run);
  check(cudaFree(device_workspace));
}

struct Shape {
  int64_t rows;
  int64_t cols;
};
constexpr Shape kShapes[] = {{1, 1},     {3, 5},     {1, 64},    {7, 129},  {127, 8},   {128, 256}, {129, 264},
                             {300, 520}, {70, 1000}, {5000, 24}, {2, 4096}, {257, 257}, {0, 64},    {4, 0}};

TEST(CudaQuantizeInt8Colwise, SameBitsAsCpu) {
  QBITS_NEEDS_GPU();
  for (const Shape& s : kShapes) {
    for (const DType dtype : kFloats) {
      // 6.1 is a number of no 16-bit type; 1e38 lies beyond those of float16.
      for (const float threshold : {0.0F, 6.0F, 6.1F, 1e-3F, 1e38F}) {
        for (const bool finite : {true, false}) {
          const HostTensor x = matrix_with_outliers(dtype, s.rows, s.cols, finite, 3);
          expect_same(x, threshold);
          expect_same(x, threshold, {.offset = 1});
        }
      }
    }
  }
}

TEST(CudaQuantizeInt8Colwise, ExtremeColumns) {
  QBITS_NEEDS_GPU();
  for (const float size : {0.0F, 0x1p-149F, 0x1.8p-140F, 0x1.3p-30F, 1.0F, 254.0F, 70000.0F, 0x1.fffffep127F}) {
    Buffer x(DType::Float32, 256 * 2);
    // Halves between codes among them.
    for (int64_t i = 0; i < 256 * 2; ++i) x.set(i, size * (static_cast<float>(i / 2 - 127) / 254.0F));
    expect_same(HostTensor(x, {256, 2}), 0.0F);
    expect_same(HostTensor(x, {128, 4}), 1e38F);
  }
}

TEST(CudaQuantizeInt8Colwise, StreamsAndGraphs) {
  QBITS_NEEDS_GPU();
  for (const Launch how : {Launch::SideStream, Launch::Graph}) {
    for (const float threshold : {0.0F, 6.0F}) {
      expect_same(matrix_with_outliers(DType::BFloat16, 333, 256, true, 4), threshold, {.launch = how});
    }
  }
}

}  // namespace
}  // namespace qbits::test
