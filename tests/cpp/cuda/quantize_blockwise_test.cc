#include <algorithm>

#include "device.h"
#include "qbits/quantize.h"

namespace qbits::test {
namespace {

std::vector<std::vector<float>> codes() {
  std::vector<std::vector<float>> all(7, std::vector<float>(256));
  create_dynamic_map(true, 7, 8, all[0]);
  create_dynamic_map(false, 7, 8, all[1]);
  create_linear_map(true, 8, true, all[2]);
  create_fp8_map(true, 4, 3, 8, all[3]);
  create_normal_map(0.9677083, true, all[4]);
  // Repeated entries, a signed zero, subnormals.
  for (int i = 0; i < 256; ++i) all[5][i] = static_cast<float>(i / 5 - 25) / 25.0F;
  all[5][124] = -0.0F;
  all[5][129] = 0x1p-149F;
  for (int i = 0; i < 256; ++i) all[6][i] = static_cast<float>(2 * i - 255) / 255.0F;  // a threshold at zero
  for (auto& code : all) std::sort(code.begin(), code.end());
  return all;
}

void check(const std::string& what, HostTensor x, const std::vector<float>& code, int64_t block_size, Run run) {
  const int64_t n = x.numel();
  const int64_t blocks = (n + block_size - 1) / block_size;
  std::vector<HostTensor> in = {std::move(x), HostTensor::floats(code)};
  std::vector<HostTensor> out = {HostTensor(DType::UInt8, {n}), HostTensor(DType::Float32, {blocks})};
  expect_same_bits(
      what + " quantize", in, out,
      [&](const Tensors& i, const Tensors& o, Stream stream) {
        quantize_blockwise(i[0], i[1], block_size, o[0], o[1], stream);
      },
      run);
  std::vector<HostTensor> quantized = {out[0], out[1], in[1]};
  for (DType dtype : kFloats) {
    std::vector<HostTensor> back = {HostTensor(dtype, {n})};
    expect_same_bits(
        what + " dequantize", quantized, back,
        [&](const Tensors& i, const Tensors& o, Stream stream) {
          dequantize_blockwise(i[0], i[1], i[2], block_size, o[0], stream);
        },
        run);
  }
}

TEST(CudaQuantizeBlockwise, SameBitsAsCpu) {
  QBITS_NEEDS_GPU();
  const auto all = codes();
  for (size_t c = 0; c < all.size(); ++c) {
    for (DType dtype : kFloats) {
      for (int64_t n : {1, 31, 4097, 20000}) {
        for (int64_t block_size : {16, 256, 4096}) {
          const std::string what = "code " + std::to_string(c) + " n " + std::to_string(n) + " block " +
                                   std::to_string(block_size) + " " + std::string(name(dtype));
          check(what, test_data(dtype, {n}, 1, n % 2 != 0), all[c], block_size, {.offset = n == 4097 ? 1 : 0});
        }
      }
    }
  }
}

// Every entry, every midpoint and their neighbours, for divisors of any size.
TEST(CudaQuantizeBlockwise, EveryThreshold) {
  QBITS_NEEDS_GPU();
  for (const auto& code : codes()) {
    for (float absmax : {1.0F, 0.7F, 3.1415926F, 0x1.fffffep10F, 0x1.5p-80F, 0x1p-126F, 0x1p-145F, 0x1.3p100F}) {
      std::vector<float> x;
      for (int i = 0; i < 256; ++i) {
        const double next = code[std::min(i + 1, 255)];
        for (double middle : {static_cast<double>(code[i]), (code[i] + next) / 2}) {
          float t = static_cast<float>(middle * absmax);
          for (int step = 0; step < 2; ++step) t = std::nextafter(t, -2 * absmax);
          for (int step = 0; step < 5; ++step, t = std::nextafter(t, 2 * absmax)) {
            if (x.size() % 64 == 0) x.push_back(absmax);
            x.push_back(std::clamp(t, -absmax, absmax));
          }
        }
      }
      check("thresholds times " + std::to_string(absmax), HostTensor::floats(x), code, 64, {});
    }
  }
}

// More than all thread blocks that a GPU runs at once take in one go.
TEST(CudaQuantizeBlockwise, ManyTiles) {
  QBITS_NEEDS_GPU();
  const auto all = codes();
  for (DType dtype : kFloats) {
    const HostTensor x = test_data(dtype, {6'000'003}, 3);
    for (int64_t block_size : {256, 4096}) check("many", x, all[0], block_size, {});
  }
}

TEST(CudaQuantizeBlockwise, StreamsAndGraphs) {
  QBITS_NEEDS_GPU();
  const auto all = codes();
  for (Launch how : {Launch::SideStream, Launch::Graph}) {
    check("launch", test_data(DType::BFloat16, {77, 65}, 2), all[0], 256, {.launch = how});
  }
}

}  // namespace
}  // namespace qbits::test
