#include <cmath>

#include "device.h"
#include "qbits/int8.h"

namespace qbits::test {
namespace {

// Normal numbers of which some columns hold large ones, and, where `finite` is false, rows NaN and infinities.
HostTensor rows_with_outliers(DType dtype, int64_t rows, int64_t cols, bool finite, uint32_t seed) {
  Buffer x = random_buffer(dtype, rows * cols, seed);
  for (int64_t j = 3; j < cols; j += 97) {
    for (int64_t i = j % 5; i < rows; i += 3) x.set(i * cols + j, i % 2 == 0 ? 40.0F : -6.0F);
  }
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
  std::vector<HostTensor> out = {HostTensor(DType::Int8, {rows, cols}), HostTensor(DType::Float32, {rows})};
  if (threshold > 0) {
    out.emplace_back(DType::Int32, std::vector<int64_t>{cols});
    out.emplace_back(DType::Int32, std::vector<int64_t>{1});
  }
  void* device_workspace = nullptr;
  const int64_t bytes = quantize_int8_rowwise_workspace(rows, cols, threshold, {DeviceType::Cuda, 0});
  check(cudaMalloc(&device_workspace, static_cast<size_t>(bytes + 16)));
  check(cudaMemset(device_workspace, 0xcd, static_cast<size_t>(bytes + 16)));
  std::vector<uint8_t> host_workspace(static_cast<size_t>(quantize_int8_rowwise_workspace(rows, cols, threshold, {})) +
                                      1);
  expect_same_bits(
      what, in, out,
      [&](const Tensors& i, const Tensors& o, Stream stream) {
        const bool cuda = i[0].device.type == DeviceType::Cuda;
        std::optional<OutlierColumns> outliers;
        if (threshold > 0) outliers = OutlierColumns{o[2], o[3]};
        const TensorView workspace =
            cuda ? TensorView::contiguous(device_workspace, DType::UInt8, {bytes}, i[0].device)
                 : TensorView::contiguous(host_workspace.data(), DType::UInt8, {std::ssize(host_workspace)});
        quantize_int8_rowwise(i[0], threshold, o[0], o[1], outliers, workspace, stream);
      },
      run);
  check(cudaFree(device_workspace));
}

struct Shape {
  int64_t rows;
  int64_t cols;
};
constexpr Shape kShapes[] = {{1, 1},    {3, 5},    {1, 64},   {7, 129},   {5, 1000},  {2, 4096}, {3, 8200},
                             {4, 4112}, {1, 8192}, {9, 9000}, {2, 28672}, {600, 256}, {0, 64},   {4, 0}};

TEST(CudaQuantizeInt8Rowwise, SameBitsAsCpu) {
  QBITS_NEEDS_GPU();
  for (const Shape& s : kShapes) {
    for (const DType dtype : kFloats) {
      for (const float threshold : {0.0F, 6.0F, 1e-3F}) {
        for (const bool finite : {true, false}) {
          const HostTensor x = rows_with_outliers(dtype, s.rows, s.cols, finite, 3);
          expect_same(x, threshold);
          expect_same(x, threshold, {.offset = 1});
        }
      }
    }
  }
}

TEST(CudaQuantizeInt8Rowwise, ExtremeRows) {
  QBITS_NEEDS_GPU();
  for (const float size : {0.0F, 0x1p-149F, 0x1.8p-140F, 0x1.3p-30F, 1.0F, 254.0F, 70000.0F, 0x1.fffffep127F}) {
    Buffer x(DType::Float32, 2 * 256);
    // Halves between codes among them.
    for (int64_t i = 0; i < 2 * 256; ++i) x.set(i, size * (static_cast<float>(i % 256 - 127) / 254.0F));
    expect_same(HostTensor(x, {2, 256}), 0.0F);
    expect_same(HostTensor(x, {4, 128}), 1e38F);
  }
}

// More rows than thread blocks run at once, and rows longer than a block keeps.
TEST(CudaQuantizeInt8Rowwise, ManyRows) {
  QBITS_NEEDS_GPU();
  for (const float threshold : {0.0F, 4.5F}) {
    expect_same(rows_with_outliers(DType::BFloat16, 3000, 520, true, 5), threshold);
    expect_same(rows_with_outliers(DType::BFloat16, 20000, 136, true, 7), threshold);
    expect_same(rows_with_outliers(DType::Float16, 700, 12288, false, 6), threshold);
  }
}

TEST(CudaQuantizeInt8Rowwise, StreamsAndGraphs) {
  QBITS_NEEDS_GPU();
  for (const Launch how : {Launch::SideStream, Launch::Graph}) {
    for (const float threshold : {0.0F, 6.0F}) {
      expect_same(rows_with_outliers(DType::BFloat16, 33, 256, true, 4), threshold, {.launch = how});
    }
  }
}

TEST(CudaDequantizeInt8Rowwise, SameBitsAsCpu) {
  QBITS_NEEDS_GPU();
  for (const Shape& s : kShapes) {
    for (const DType dtype : kFloats) {
      for (const int64_t offset : {0, 1}) {
        std::vector<HostTensor> in = {HostTensor(DType::Int8, {s.rows, s.cols}),
                                      HostTensor(random_buffer(DType::Float32, s.rows, 8), {s.rows})};
        for (size_t i = 0; i < in[0].bytes.size(); ++i) in[0].bytes[i] = static_cast<uint8_t>(i * 37 + i / 256);
        std::vector<HostTensor> out = {HostTensor(dtype, {s.rows, s.cols})};
        expect_same_bits("dequantize " + std::to_string(s.rows) + " x " + std::to_string(s.cols), in, out,
                         [](const Tensors& i, const Tensors& o, Stream stream) {
                           dequantize_int8_rowwise(i[0], i[1], o[0], stream);
                         },
                         {.offset = offset});
      }
    }
  }
}

}  // namespace
}  // namespace qbits::test
