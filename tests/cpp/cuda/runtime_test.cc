#include "qbits/runtime.h"

#include "device.h"
#include "qbits/error.h"
#include "qbits/quantize.h"

namespace qbits::test {
namespace {

TEST(CudaRuntime, SaysWhatItHoldsWithoutADriver) {
  EXPECT_FALSE(cuda_archs().empty());
  EXPECT_GE(cuda_runtime_version(), 12000);
  const std::string reason = cuda_unavailable_reason();
  EXPECT_EQ(reason.find('\n'), std::string::npos);
}

TEST(CudaRuntime, WithoutAGpuACudaTensorIsADeviceError) {
  if (has_gpu()) GTEST_SKIP() << "a CUDA device is present";
  uint8_t byte = 0;
  float absmax = 0;
  const Device cuda{DeviceType::Cuda, 0};
  try {
    quantize_4bit(TensorView::contiguous(&absmax, DType::Float32, {1}, cuda), format("nf4"), 64,
                  TensorView::contiguous(&byte, DType::UInt8, {1}, cuda),
                  TensorView::contiguous(&absmax, DType::Float32, {1}, cuda));
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::DeviceError);
    EXPECT_TRUE(std::string(error.what()).starts_with("[quantize_4bit] CUDA: got ")) << error.what();
  }
}

TEST(CudaRuntime, OpsRunOnTheTensorsDeviceAndRestoreTheCurrentOne) {
  QBITS_NEEDS_GPU();
  int count = 0;
  check(cudaGetDeviceCount(&count));
  if (count < 2) GTEST_SKIP() << "one GPU";
  HostTensor x = test_data(DType::Float32, {1000}, 1);
  HostTensor codes(DType::UInt8, {500});
  HostTensor absmax(DType::Float32, {16});
  check(cudaSetDevice(1));
  DeviceTensor dx(x, 0), dcodes(codes, 0), dabsmax(absmax, 0);
  check(cudaSetDevice(0));
  auto on_second = [](TensorView view) {
    view.device.index = 1;
    return view;
  };
  quantize_4bit(on_second(dx.view()), format("nf4"), 64, on_second(dcodes.view()), on_second(dabsmax.view()));
  int current = -1;
  check(cudaGetDevice(&current));
  EXPECT_EQ(current, 0);
  quantize_4bit(x.view(), format("nf4"), 64, codes.view(), absmax.view());
  check(cudaSetDevice(1));
  EXPECT_EQ(dcodes.download(), codes.bytes);
  check(cudaSetDevice(0));
}

// An error of an earlier call by somebody else is not ours to report. DeliberateError in a name keeps a test from the
// memory checker, which counts every error that CUDA returns.
TEST(CudaRuntime, DeliberateErrorOfAnEarlierCallIsNotReportedAsOurs) {
  QBITS_NEEDS_GPU();
  EXPECT_NE(cudaSetDevice(10000), cudaSuccess);
  HostTensor x = test_data(DType::Float32, {100}, 1);
  const DeviceTensor dx(x, 0), codes(HostTensor(DType::UInt8, {50}), 0), absmax(HostTensor(DType::Float32, {2}), 0);
  EXPECT_NO_THROW(quantize_4bit(dx.view(), format("nf4"), 64, codes.view(), absmax.view()));
  static_cast<void>(cudaGetLastError());
}

}  // namespace
}  // namespace qbits::test
