#include "device.h"
#include "qbits/quantize.h"

namespace qbits::test {
namespace {

void check(int64_t blocks, bool finite, Run run) {
  std::vector<float> code(256);
  create_dynamic_map(true, 7, 8, code);
  Buffer absmax = random_buffer(DType::Float32, blocks, static_cast<uint32_t>(blocks), 0.1F);
  for (int64_t i = 0; i < blocks; ++i) absmax.set(i, std::fabs(absmax.get(i)));
  if (!finite) absmax.set(blocks / 2, std::bit_cast<float>(0x7fc00000U));
  std::vector<HostTensor> in = {HostTensor(std::move(absmax)), HostTensor::floats(code)};
  std::vector<HostTensor> out = {HostTensor(DType::UInt8, {blocks}), HostTensor(DType::Float32, {(blocks + 255) / 256}),
                                 HostTensor(DType::Float32, {})};
  const std::string what = "blocks " + std::to_string(blocks);
  expect_same_bits(
      what, in, out,
      [](const Tensors& i, const Tensors& o, Stream stream) { quantize_absmax(i[0], i[1], o[0], o[1], o[2], stream); },
      run);
  std::vector<HostTensor> nested = {out[0], out[1], in[1], out[2]};
  std::vector<HostTensor> back = {HostTensor(DType::Float32, {blocks})};
  expect_same_bits(
      what + " back", nested, back,
      [](const Tensors& i, const Tensors& o, Stream stream) {
        dequantize_absmax({.values = i[0], .nested_absmax = i[1], .nested_code = i[2], .offset = i[3]}, o[0], stream);
      },
      run);
}

TEST(CudaQuantizeAbsmax, SameBitsAsCpu) {
  QBITS_NEEDS_GPU();
  for (int64_t blocks : {1, 2, 255, 256, 257, 5000, 16384, 16385, 100000, 5000001}) {
    check(blocks, true, {.offset = blocks % 2});
    if (blocks < 20000) check(blocks, false, {});
  }
}

TEST(CudaQuantizeAbsmax, StreamsAndGraphs) {
  QBITS_NEEDS_GPU();
  for (Launch how : {Launch::SideStream, Launch::Graph}) check(40000, true, {.launch = how});
}

}  // namespace
}  // namespace qbits::test
