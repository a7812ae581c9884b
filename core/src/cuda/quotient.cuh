#pragma once

#include "cuda/float_types.cuh"

namespace qbits::cuda {

__device__ inline float approximate_reciprocal(float x) {
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(x));
  return reciprocal;
}

// 2^32 x / divisor for many x, where x / divisor is rounded once to float32. A remainder corrects the product with the
// reciprocal, as in the division that nvcc emits for ordinary operands (tests/cpp/cuda/quotient_test.cu proves its
// rounding); scaled as it is here, nothing under- or overflows whatever the divisor, as long as quotients below
// 2^-40 need not be exact.
class Quotient {
 public:
  // Of a divisor that is not positive and finite, quotients are arbitrary.
  __device__ explicit Quotient(float divisor) {
    factor_ = divisor < 0x1p-60F ? 0x1p64F : 1.0F;
    divisor_ = divisor * factor_ * 0x1p-32F;
    // __frcp_rn for divisors that are neither subnormal nor huge.
    const float estimate = approximate_reciprocal(divisor_);
    reciprocal_ = __fmaf_rn(__fmaf_rn(-divisor_, estimate, 1.0F), estimate, estimate);
  }

  // What x must be multiplied by first, 1 for all but tiny divisors.
  __device__ float factor() const { return factor_; }

  __device__ float operator()(float x) const {
    const float estimate = __fmul_rn(x, reciprocal_);
    return __fmaf_rn(__fmaf_rn(-estimate, divisor_, x), reciprocal_, estimate);
  }

 private:
  float factor_;
  float divisor_;
  float reciprocal_;
};

}  // namespace qbits::cuda
