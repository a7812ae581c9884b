#include "cuda/optimizer_warp.cuh"
#include "device.h"

namespace qbits::test {
namespace {

__global__ void roots(unsigned long long* wrong) {
  const uint32_t bits = 0x3f800000U + blockIdx.x * blockDim.x + threadIdx.x;  // [1, 4): scaled by 4 nothing changes
  const float x = __uint_as_float(bits);
  if (cuda::FloatOps::root(x) != __fsqrt_rn(x)) atomicAdd(wrong, 1ULL);
  // Down to where a remainder would underflow, and up to the largest.
  for (float scale : {0x1p-100F, 0x1p-60F, 0x1p60F, 0x1p124F}) {
    if (cuda::FloatOps::root(x * scale) != __fsqrt_rn(x * scale)) atomicAdd(wrong, 1ULL);
  }
  if (bits == 0x3f800000U && cuda::FloatOps::root(0.0F) != 0.0F) atomicAdd(wrong, 1ULL);
}

// Quotients are rounded as quotient_test.cu proves it: by the same operations.
TEST(CudaOptimizerStep, EveryRootIsRoundedOnce) {
  QBITS_NEEDS_GPU();
  unsigned long long* device = nullptr;
  check(cudaMalloc(&device, sizeof(*device)));
  check(cudaMemset(device, 0, sizeof(*device)));
  roots<<<(1 << 24) / 256, 256>>>(device);
  check(cudaGetLastError());
  unsigned long long wrong = 1;
  check(cudaMemcpy(&wrong, device, sizeof(wrong), cudaMemcpyDeviceToHost));
  check(cudaFree(device));
  EXPECT_EQ(wrong, 0U);
}

}  // namespace
}  // namespace qbits::test
