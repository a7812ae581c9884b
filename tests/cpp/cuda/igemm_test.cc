#include <algorithm>
#include <random>

#include "device.h"
#include "qbits/int8.h"

namespace qbits::test {
namespace {

HostTensor random_codes(std::vector<int64_t> shape, uint32_t seed) {
  HostTensor codes(DType::Int8, std::move(shape));
  std::mt19937 random(seed);
  for (uint8_t& code : codes.bytes) code = static_cast<uint8_t>(random());
  return codes;
}

// `batch` of 0: matrices without that dimension.
void expect_same(int64_t batch, int64_t m, int64_t n, int64_t k, bool transpose_a, bool transpose_b, Run run) {
  const auto shape = [&](int64_t rows, int64_t columns) {
    return batch == 0 ? std::vector<int64_t>{rows, columns} : std::vector<int64_t>{batch, rows, columns};
  };
  const std::string what = "batch " + std::to_string(batch) + ", M " + std::to_string(m) + ", N " + std::to_string(n) +
                           ", K " + std::to_string(k) + (transpose_a ? ", A transposed" : "") +
                           (transpose_b ? ", B transposed" : "") + ", offset " + std::to_string(run.offset);
  std::vector<HostTensor> in = {random_codes(transpose_a ? shape(k, m) : shape(m, k), 1),
                                random_codes(transpose_b ? shape(n, k) : shape(k, n), 2)};
  std::vector<HostTensor> out = {HostTensor(DType::Int32, shape(m, n))};
  // As large as any call's: copies of both operands in rows of whole 16 bytes.
  const int64_t most = std::max<int64_t>(batch, 1) * (m + n) * (k + 15);
  void* device_workspace = nullptr;
  check(cudaMalloc(&device_workspace, static_cast<size_t>(most + 16)));
  std::vector<uint8_t> host_workspace;
  expect_same_bits(
      what, in, out,
      [&](const Tensors& i, const Tensors& o, Stream stream) {
        const int64_t bytes = igemm_workspace(i[0], transpose_a, i[1], transpose_b);
        void* data = device_workspace;
        if (i[0].device.type == DeviceType::Cpu) {
          host_workspace.resize(static_cast<size_t>(bytes + 1));
          data = host_workspace.data();
        } else {
          ASSERT_LE(bytes, most) << what;
        }
        igemm(i[0], transpose_a, i[1], transpose_b, o[0],
              TensorView::contiguous(data, DType::UInt8, {bytes}, i[0].device), stream);
      },
      run);
  check(cudaFree(device_workspace));
}

TEST(CudaIgemm, SameBitsAsCpu) {
  QBITS_NEEDS_GPU();
  constexpr int64_t kShapes[][4] = {{0, 1, 1, 1},     {0, 37, 130, 65}, {3, 16, 40, 128}, {2, 129, 64, 333},
                                    {0, 5, 2000, 16}, {4, 9, 7, 0},     {0, 0, 5, 8},     {2, 5, 0, 8}};
  for (const auto& s : kShapes) {
    for (const bool transpose_a : {false, true}) {
      for (const bool transpose_b : {false, true}) {
        for (const int64_t offset : {0, 1}) {
          for (const Launch launch : {Launch::DefaultStream, Launch::SideStream, Launch::Graph}) {
            expect_same(s[0], s[1], s[2], s[3], transpose_a, transpose_b, {.offset = offset, .launch = launch});
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace qbits::test
