#include <random>

#include "device.h"
#include "qbits/int8.h"

namespace qbits::test {
namespace {

void expect_same(int64_t m, int64_t n, DType dtype, bool bias, Run run = {}) {
  std::mt19937 engine(static_cast<uint32_t>(m + n));
  HostTensor dots(DType::Int32, {m, n});
  for (int64_t i = 0; i < m * n; ++i) {
    reinterpret_cast<int32_t*>(dots.bytes.data())[i] = static_cast<int32_t>(engine()) >> engine() % 32;
  }
  std::vector<HostTensor> in = {std::move(dots), HostTensor(random_buffer(DType::Float32, m, 1, 3.0F), {m}),
                                test_data(DType::Float32, {n}, 2), HostTensor(random_buffer(dtype, n, 3, 100.0F), {n})};
  std::vector<HostTensor> out = {HostTensor(dtype, {m, n})};
  expect_same_bits(
      std::string(name(dtype)) + " [" + std::to_string(m) + ", " + std::to_string(n) + "] offset " +
          std::to_string(run.offset),
      in, out,
      [&](const Tensors& i, const Tensors& o, Stream stream) {
        dequantize_int8_product(i[0], i[1], i[2], bias ? std::optional(i[3]) : std::nullopt, o[0], stream);
      },
      run);
}

TEST(CudaDequantizeInt8Product, SameBitsAsCpu) {
  QBITS_NEEDS_GPU();
  for (const DType dtype : kFloats) {
    for (auto [m, n] : {std::pair<int64_t, int64_t>{1, 1},
                        {3, 5},
                        {1, 8},
                        {33, 256},
                        {31, 264},
                        {5, 257},
                        {70, 1000},
                        {2, 4096},
                        {129, 4100},
                        {1000, 3},
                        {0, 8},
                        {8, 0}}) {
      expect_same(m, n, dtype, false);
      expect_same(m, n, dtype, true);
      expect_same(m, n, dtype, true, {.offset = 1});
      expect_same(m, n, dtype, true, {.offset = 2});
    }
  }
}

TEST(CudaDequantizeInt8Product, StreamsAndGraphs) {
  QBITS_NEEDS_GPU();
  for (const Launch how : {Launch::SideStream, Launch::Graph}) {
    expect_same(70, 512, DType::BFloat16, true, {.launch = how});
  }
}

}  // namespace
}  // namespace qbits::test
