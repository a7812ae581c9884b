#include <algorithm>
#include <cstdint>
#include <string>

#include "device.h"
#include "qbits/error.h"
#include "qbits/quantize.h"

namespace qbits::test {
namespace {

// CPU and GPU agree on every bit, though each needs its own amount of workspace.
void check_quantiles(const std::string& what, HostTensor x, int64_t num_quantiles, double offset, Run run = {}) {
  std::vector<HostTensor> in = {std::move(x)};
  std::vector<HostTensor> out = {HostTensor(DType::Float32, {num_quantiles})};
  int64_t bytes = 0;
  {
    const DeviceTensor device(in[0], run.offset);
    bytes = std::max(estimate_quantiles_workspace(in[0].view()), estimate_quantiles_workspace(device.view()));
  }
  HostTensor host_workspace(DType::UInt8, {bytes});
  const DeviceTensor device_workspace(host_workspace, 0);
  expect_same_bits(
      what, in, out,
      [&](const Tensors& i, const Tensors& o, Stream stream) {
        TensorView workspace = i[0].device.type == DeviceType::Cuda ? device_workspace.view() : host_workspace.view();
        workspace.shape[0] = estimate_quantiles_workspace(i[0]);
        estimate_quantiles(i[0], offset, o[0], workspace, stream);
      },
      run);
}

TEST(CudaEstimateQuantiles, SameBitsAsCpu) {
  QBITS_NEEDS_GPU();
  for (DType dtype : kFloats) {
    for (int64_t n : {1, 2, 100, 399, 401, 5000, 300001}) {
      for (int64_t q : {1, 2, 256, 1000}) {
        const std::string what =
            std::string(name(dtype)) + " n " + std::to_string(n) + " quantiles " + std::to_string(q);
        check_quantiles(what, test_data(dtype, {n}, 1, n % 2 == 0), q, 1.0 / 512, {.offset = n == 5000 ? 1 : 0});
        check_quantiles(what + " from 0", test_data(dtype, {n}, 2), q, 0.0);
      }
    }
  }
}

TEST(CudaEstimateQuantiles, DistributionsThatCrowdBuckets) {
  QBITS_NEEDS_GPU();
  const int64_t n = 200000;
  Buffer narrow = random_buffer(DType::Float32, n, 3, 1e-4F);  // inside a few buckets of 16 bits
  for (int64_t i = 0; i < n; ++i) narrow.set(i, 1.003F + narrow.get(i) * 0.01F);
  check_quantiles("narrow", HostTensor(narrow), 256, 1.0 / 512);
  Buffer equal(DType::Float32, n);
  for (int64_t i = 0; i < n; ++i) equal.set(i, -1.2345678F);
  check_quantiles("equal", HostTensor(equal), 256, 1.0 / 512);
  for (int64_t i = 0; i < n / 3; ++i) equal.set(i, i % 3 == 0 ? NAN : (i % 3 == 1 ? INFINITY : -INFINITY));
  check_quantiles("infinities", HostTensor(equal), 256, 0.0);
  for (int64_t i = 0; i < n; ++i) equal.set(i, NAN);
  check_quantiles("nothing left", HostTensor(equal), 7, 0.0);
  Buffer uniform(DType::Float32, n);
  for (int64_t i = 0; i < n; ++i) uniform.set(i, static_cast<float>((i * 7919) % n) / static_cast<float>(n));
  check_quantiles("uniform", HostTensor(uniform), 65536, 0.0);
}

// Against sorting: the value's rank is within half a percent.
TEST(CudaEstimateQuantiles, RankIsWithinHalfAPercent) {
  QBITS_NEEDS_GPU();
  HostTensor x = test_data(DType::Float32, {1 << 20}, 5);
  std::vector<float> sorted(reinterpret_cast<float*>(x.bytes.data()),
                            reinterpret_cast<float*>(x.bytes.data()) + (1 << 20));
  std::sort(sorted.begin(), sorted.end());
  const DeviceTensor device(x, 0);
  const DeviceTensor workspace(HostTensor(DType::UInt8, {estimate_quantiles_workspace(device.view())}), 0);
  const DeviceTensor out(HostTensor(DType::Float32, {256}), 0);
  estimate_quantiles(device.view(), 1.0 / 512, out.view(), workspace.view());
  const std::vector<uint8_t> bytes = out.download();
  const float* q = reinterpret_cast<const float*>(bytes.data());
  for (int i = 0; i < 256; ++i) {
    const double want = 1.0 / 512 + i * (1.0 - 2.0 / 512) / 255;
    const double low = static_cast<double>(std::lower_bound(sorted.begin(), sorted.end(), q[i]) - sorted.begin());
    const double high = static_cast<double>(std::upper_bound(sorted.begin(), sorted.end(), q[i]) - sorted.begin());
    EXPECT_LE(low / (1 << 20), want + 0.005) << i;
    EXPECT_GE(high / (1 << 20), want - 0.005) << i;
  }
}

// Of every op with a workspace, for one check serves them all.
TEST(CudaEstimateQuantiles, RefusesAWorkspaceOffItsBoundary) {
  QBITS_NEEDS_GPU();
  const DeviceTensor x(test_data(DType::Float32, {1 << 16}, 5), 0);
  const DeviceTensor out(HostTensor(DType::Float32, {16}), 0);
  const int64_t bytes = estimate_quantiles_workspace(x.view());
  const DeviceTensor workspace(HostTensor(DType::UInt8, {bytes + 16}), 0);
  TensorView view = workspace.view();
  view.data = static_cast<uint8_t*>(view.data) + 8;
  try {
    estimate_quantiles(x.view(), 0.01, out.view(), view);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::InvalidArgument);
    EXPECT_NE(std::string(error.what()).find("16-byte"), std::string::npos) << error.what();
  }
}

TEST(CudaEstimateQuantiles, StreamsAndGraphs) {
  QBITS_NEEDS_GPU();
  for (Launch how : {Launch::SideStream, Launch::Graph}) {
    for (DType dtype : kFloats) check_quantiles("launch", test_data(dtype, {50000}, 6), 256, 0.01, {.launch = how});
  }
}

}  // namespace
}  // namespace qbits::test
