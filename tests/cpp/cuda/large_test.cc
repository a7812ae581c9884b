#include <algorithm>

#include "device.h"
#include "qbits/quantize.h"

// Tensors of more than 2^31 elements: one random megabyte repeated, so that every repetition must give the codes
// and values of the first, which the other tests compare with the CPU.

namespace qbits::test {
namespace {

constexpr int64_t kPeriod = 1 << 20;
constexpr int64_t kElements = (int64_t{1} << 31) + 3 * kPeriod + 12345;
constexpr size_t kNeeded = size_t{20} << 30;

class DeviceMemory {
 public:
  explicit DeviceMemory(int64_t bytes) { check(cudaMalloc(&data_, static_cast<size_t>(bytes))); }
  ~DeviceMemory() { static_cast<void>(cudaFree(data_)); }
  DeviceMemory(const DeviceMemory&) = delete;
  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  TensorView view(DType dtype, int64_t n) const {
    return TensorView::contiguous(data_, dtype, {n}, {DeviceType::Cuda, 0});
  }
  std::vector<uint8_t> download(int64_t begin, int64_t bytes) const {
    std::vector<uint8_t> host(static_cast<size_t>(bytes));
    check(cudaMemcpy(host.data(), data() + begin, host.size(), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  void* data_ = nullptr;
};

// Fills `bytes` bytes with repetitions of `first`, doubling what is there.
void repeat(const DeviceMemory& memory, const std::vector<uint8_t>& first, int64_t bytes) {
  int64_t filled = std::ssize(first);
  check(cudaMemcpy(memory.data(), first.data(), first.size(), cudaMemcpyHostToDevice));
  for (; filled < bytes; filled *= 2) {
    const size_t more = static_cast<size_t>(std::min(filled, bytes - filled));
    check(cudaMemcpy(memory.data() + filled, memory.data(), more, cudaMemcpyDeviceToDevice));
  }
}

// Repetitions before, at and after 2^31 elements, and the cut-off last one, equal the first.
void expect_periodic(const std::string& what, const DeviceMemory& memory, int64_t bits_per_element) {
  const int64_t period = kPeriod * bits_per_element / 8;
  const int64_t total = (kElements * bits_per_element + 7) / 8;
  const std::vector<uint8_t> first = memory.download(0, period);
  EXPECT_NE(first, std::vector<uint8_t>(first.size(), 0xEE)) << what << " wrote nothing";
  for (int64_t repetition : {int64_t{1}, (int64_t{1} << 30) / kPeriod, (int64_t{1} << 31) / kPeriod - 1,
                             (int64_t{1} << 31) / kPeriod, kElements / kPeriod - 1}) {
    EXPECT_EQ(memory.download(repetition * period, period), first) << what << " repetition " << repetition;
  }
  // An odd last element shares its byte with padding.
  const int64_t tail = total - total / period * period - 1;
  EXPECT_TRUE(memory.download(total / period * period, tail) ==
              std::vector<uint8_t>(first.begin(), first.begin() + tail))
      << what << " tail";
}

class CudaLarge : public testing::Test {
 protected:
  void SetUp() override {
    QBITS_NEEDS_GPU();
    size_t free = 0;
    size_t total = 0;
    check(cudaMemGetInfo(&free, &total));
    if (free < kNeeded) GTEST_SKIP() << "needs 20 GiB of free device memory";
  }
};

TEST_F(CudaLarge, Quantizers) {
  const HostTensor one = test_data(DType::BFloat16, {kPeriod}, 1);
  const DeviceMemory x(kElements * 2), codes(kElements), scales(kElements / 64 * 4 + 4), zeros(kElements / 64 * 4 + 4);
  const DeviceMemory out(kElements * 2), table(256 * 4);
  repeat(x, one.bytes, kElements * 2);
  const TensorView view = x.view(DType::BFloat16, kElements);
  const int64_t blocks = (kElements + 63) / 64;
  auto fresh = [&](const DeviceMemory& m, int64_t bytes) {
    check(cudaMemset(m.data(), 0xEE, static_cast<size_t>(bytes)));
  };

  for (std::string_view name : {"nf4", "fp4"}) {
    const Format& f = format(name);
    fresh(codes, kElements);
    fresh(out, kElements * 2);
    const TensorView absmax = scales.view(DType::Float32, blocks);
    const TensorView packed = codes.view(DType::UInt8, codes_size(f, kElements));
    quantize_4bit(view, f, 64, packed, absmax);
    expect_periodic(std::string(name) + " codes", codes, 4);
    dequantize_4bit(packed, {.values = absmax}, f, 64, out.view(DType::BFloat16, kElements));
    expect_periodic(std::string(name) + " values", out, 16);
  }

  std::vector<float> code(256);
  create_dynamic_map(true, 7, 8, code);
  check(cudaMemcpy(table.data(), code.data(), 1024, cudaMemcpyHostToDevice));
  const TensorView table_view = table.view(DType::Float32, 256);
  const TensorView bytes = codes.view(DType::UInt8, kElements);
  fresh(codes, kElements);
  fresh(out, kElements * 2);
  quantize_blockwise(view, table_view, 64, bytes, scales.view(DType::Float32, blocks));
  expect_periodic("blockwise codes", codes, 8);
  dequantize_blockwise(bytes, scales.view(DType::Float32, blocks), table_view, 64,
                       out.view(DType::BFloat16, kElements));
  expect_periodic("blockwise values", out, 16);

  // One row of odd length: the general kernels.
  const Format& f = format("int8_affine");
  fresh(codes, kElements);
  fresh(out, kElements * 2);
  const TensorView s = TensorView::contiguous(scales.data(), DType::Float32, {1, blocks}, {DeviceType::Cuda, 0});
  const TensorView z = TensorView::contiguous(zeros.data(), DType::Float32, {1, blocks}, {DeviceType::Cuda, 0});
  const TensorView row = TensorView::contiguous(x.data(), DType::BFloat16, {1, kElements}, {DeviceType::Cuda, 0});
  const TensorView back = TensorView::contiguous(out.data(), DType::BFloat16, {1, kElements}, {DeviceType::Cuda, 0});
  quantize_affine(row, f, 64, bytes, s, z);
  expect_periodic("int8_affine codes", codes, 8);
  dequantize_affine(bytes, s, z, f, 64, back);
  expect_periodic("int8_affine values", out, 16);
}

TEST_F(CudaLarge, Quantiles) {
  HostTensor one = test_data(DType::Float32, {kPeriod}, 2);
  const DeviceMemory x(kElements * 4);
  repeat(x, one.bytes, kElements * 4);
  const TensorView view = x.view(DType::Float32, kElements);
  const DeviceMemory workspace(estimate_quantiles_workspace(view)), out(256 * 4);
  estimate_quantiles(view, 1.0 / 512, out.view(DType::Float32, 256),
                     workspace.view(DType::UInt8, estimate_quantiles_workspace(view)));
  const std::vector<uint8_t> bytes = out.download(0, 1024);
  const float* q = reinterpret_cast<const float*>(bytes.data());
  float* values = reinterpret_cast<float*>(one.bytes.data());
  std::sort(values, values + kPeriod);
  for (int i = 0; i < 256; ++i) {
    const double want = 1.0 / 512 + i * (1.0 - 2.0 / 512) / 255;
    EXPECT_LE(static_cast<double>(std::lower_bound(values, values + kPeriod, q[i]) - values) / kPeriod, want + 0.005);
    EXPECT_GE(static_cast<double>(std::upper_bound(values, values + kPeriod, q[i]) - values) / kPeriod, want - 0.005);
  }
}

}  // namespace
}  // namespace qbits::test
