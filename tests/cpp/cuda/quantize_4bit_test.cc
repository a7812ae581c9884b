#include "device.h"
#include "qbits/quantize.h"

namespace qbits::test {
namespace {

constexpr int64_t kSizes[] = {1, 2, 15, 17, 63, 64, 65, 1000, 4097, 33333};

std::string describe(const Format& f, DType dtype, int64_t n, int64_t block_size) {
  return std::string(f.name) + " " + std::string(name(dtype)) + " n " + std::to_string(n) + " block " +
         std::to_string(block_size);
}

std::vector<HostTensor> quantized(const Format& f, int64_t n, int64_t block_size) {
  return {HostTensor(DType::UInt8, {codes_size(f, n)}), HostTensor(DType::Float32, {num_scales(f, 1, n, block_size)})};
}

void check_quantize(const Format& f, std::vector<HostTensor> in, int64_t block_size, Run run) {
  const int64_t n = in[0].numel();
  std::vector<HostTensor> out = quantized(f, n, block_size);
  expect_same_bits(
      describe(f, in[0].dtype, n, block_size), in, out,
      [&](const Tensors& i, const Tensors& o, Stream stream) {
        quantize_4bit(i[0], f, block_size, o[0], o[1], stream);
      },
      run);
}

void check_dequantize(const Format& f, DType dtype, int64_t n, int64_t block_size, Run run) {
  std::vector<HostTensor> x;
  x.push_back(test_data(DType::Float32, {n}, 3, n < 4000));
  std::vector<HostTensor> in = quantized(f, n, block_size);
  quantize_4bit(x[0].view(), f, block_size, in[0].view(), in[1].view());
  std::vector<HostTensor> out = {HostTensor(dtype, {n})};
  expect_same_bits(
      describe(f, dtype, n, block_size), in, out,
      [&](const Tensors& i, const Tensors& o, Stream stream) {
        dequantize_4bit(i[0], {.values = i[1]}, f, block_size, o[0], stream);
      },
      run);
}

TEST(CudaQuantize4bit, SameBitsAsCpu) {
  QBITS_NEEDS_GPU();
  for (std::string_view name : {"nf4", "fp4"}) {
    const Format& f = format(name);
    for (DType dtype : kFloats) {
      for (int64_t block_size : f.block_sizes) {
        for (int64_t n : kSizes) check_quantize(f, {test_data(dtype, {n}, 1, n % 2 == 0)}, block_size, {});
      }
      for (int64_t block_size : {64, 1024}) {
        for (int64_t n : kSizes) check_quantize(f, {test_data(dtype, {n}, 2)}, block_size, {.offset = 1});
      }
    }
  }
}

// Quotients on, just below and just above every threshold, for divisors of any size.
TEST(CudaQuantize4bit, EveryThreshold) {
  QBITS_NEEDS_GPU();
  for (std::string_view name : {"nf4", "fp4"}) {
    const Format& f = format(name);
    for (float absmax : {1.0F, 0.7F, 3.1415926F, 0x1.fffffep10F, 0x1.5p-80F, 0x1p-126F, 0x1p-145F, 0x1.3p100F}) {
      std::vector<float> x;
      for (float a : f.codebook) {
        for (float b : f.codebook) {
          float t = (a + b) / 2 * absmax;
          for (int step = 0; step < 4; ++step) t = std::nextafter(t, -2 * absmax);
          for (int step = 0; step < 9; ++step, t = std::nextafter(t, 2 * absmax)) {
            if (x.size() % 64 == 0) x.push_back(absmax);
            x.push_back(std::fabs(t) <= absmax ? t : absmax);
          }
        }
      }
      check_quantize(f, {HostTensor::floats(x)}, 64, {});
    }
  }
}

// More than all thread blocks that a GPU runs at once take in one go.
TEST(CudaQuantize4bit, ManyTiles) {
  QBITS_NEEDS_GPU();
  const Format& f = format("nf4");
  for (DType dtype : kFloats) {
    const HostTensor x = test_data(dtype, {6'000'003}, 5);
    for (int64_t block_size : {64, 4096}) check_quantize(f, {x}, block_size, {});
  }
}

TEST(CudaQuantize4bit, StreamsAndGraphs) {
  QBITS_NEEDS_GPU();
  const Format& f = format("nf4");
  for (Launch how : {Launch::SideStream, Launch::Graph}) {
    check_quantize(f, {test_data(DType::BFloat16, {300, 67}, 4)}, 64, {.launch = how});
    check_dequantize(f, DType::BFloat16, 20001, 64, {.launch = how});
  }
}

TEST(CudaDequantize4bit, SameBitsAsCpu) {
  QBITS_NEEDS_GPU();
  for (std::string_view name : {"nf4", "fp4"}) {
    const Format& f = format(name);
    for (DType dtype : kFloats) {
      for (int64_t block_size : f.block_sizes) {
        for (int64_t n : kSizes) check_dequantize(f, dtype, n, block_size, {});
      }
      for (int64_t n : kSizes) check_dequantize(f, dtype, n, 64, {.offset = 1});
    }
  }
}

TEST(CudaDequantize4bit, DoubleQuantizedScales) {
  QBITS_NEEDS_GPU();
  const Format& f = format("nf4");
  std::vector<float> code(256);
  create_dynamic_map(true, 7, 8, code);
  for (DType dtype : kFloats) {
    for (int64_t blocks : {1, 255, 256, 257, 1000}) {
      const int64_t n = blocks * 64 - 3;
      std::vector<HostTensor> in = {HostTensor(random_buffer(DType::Float32, codes_size(f, n) / 4 + 1, 5))};
      in[0].dtype = DType::UInt8;
      in[0].shape = {codes_size(f, n)};
      in[0].bytes.resize(static_cast<size_t>(codes_size(f, n)));
      HostTensor values(DType::UInt8, {blocks});
      for (int64_t i = 0; i < blocks; ++i) values.bytes[i] = static_cast<uint8_t>(i * 7);
      in.push_back(values);
      in.push_back(HostTensor(random_buffer(DType::Float32, (blocks + 255) / 256, 6)));
      in.push_back(HostTensor::floats(code));
      in.push_back(HostTensor::floats({0.73F}));
      for (int64_t offset : {0, 1}) {
        std::vector<HostTensor> out = {HostTensor(dtype, {n})};
        expect_same_bits(describe(f, dtype, n, 64) + " nested", in, out,
                         [&](const Tensors& i, const Tensors& o, Stream stream) {
                           const Absmax absmax{
                               .values = i[1], .nested_absmax = i[2], .nested_code = i[3], .offset = i[4]};
                           dequantize_4bit(i[0], absmax, f, 64, o[0], stream);
                         },
                         {.offset = offset});
      }
    }
  }
}

}  // namespace
}  // namespace qbits::test
