#include "cuda/quotient.cuh"

#include "device.h"

namespace qbits::test {
namespace {

struct Tally {
  unsigned long long cases;
  unsigned long long wrong;
};

// Whether q is the float nearest to x / a, by the remainder, which float64 holds exactly.
__device__ bool is_nearest(float q, float x, float a) {
  const double remainder = fma(-static_cast<double>(q), static_cast<double>(a), static_cast<double>(x));
  const double unit = static_cast<double>(__uint_as_float(__float_as_uint(q) & 0x7f800000U)) * 0x1p-23;
  return fabs(remainder) <= unit / 2 * static_cast<double>(a);
}

// Rounding can only go wrong where x / a is next to the middle of two floats. With integers 2^23 <= x, a < 2^24 and
// half = 1 where x < a, else 0, and with a = 2^v b, b odd, the quotient's distance from a middle is r / 2b of its last
// bit, where r = 2^(24 + half - v) x (mod b) is odd. Before its last rounding a Quotient is within 2^-22 of that bit,
// so |r| < 8 and v < 3 are all cases there are. A thread per a.
__global__ void quotients_next_to_middles(Tally* tally) {
  const int64_t a = (int64_t{1} << 23) + static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int v = __ffsll(a) - 1;
  if (v > 2) return;
  const int64_t b = a >> v;
  const cuda::Quotient quotient(static_cast<float>(a));
  unsigned long long cases = 0;
  unsigned long long wrong = 0;
  for (int half = 0; half < 2; ++half) {
    int64_t inverse = 1;  // of 2^(24 + half - v) modulo b
    for (int i = 0; i < 24 + half - v; ++i) inverse = (inverse % 2 == 0 ? inverse : inverse + b) / 2;
    const int64_t low = half == 0 ? a : int64_t{1} << 23;
    const int64_t high = half == 0 ? int64_t{1} << 24 : a;
    for (int64_t r = -7; r <= 7; r += 2) {
      const int64_t smallest = (r + b) * inverse % b;
      for (int64_t x = low + (smallest - low % b + b) % b; x < high; x += b) {
        ++cases;
        const float q = quotient(static_cast<float>(x)) * 0x1p-32F;
        if (!is_nearest(q, static_cast<float>(x), static_cast<float>(a))) ++wrong;
      }
    }
  }
  atomicAdd(&tally->cases, cases);
  atomicAdd(&tally->wrong, wrong);
}

TEST(CudaQuotient, EveryHardCaseIsRoundedOnce) {
  QBITS_NEEDS_GPU();
  Tally* device = nullptr;
  check(cudaMalloc(&device, sizeof(Tally)));
  check(cudaMemset(device, 0, sizeof(Tally)));
  quotients_next_to_middles<<<(1 << 23) / 256, 256>>>(device);
  check(cudaGetLastError());
  Tally tally{};
  check(cudaMemcpy(&tally, device, sizeof(Tally), cudaMemcpyDeviceToHost));
  check(cudaFree(device));
  EXPECT_GT(tally.cases, 50'000'000U);
  EXPECT_EQ(tally.wrong, 0U);
}

}  // namespace
}  // namespace qbits::test
