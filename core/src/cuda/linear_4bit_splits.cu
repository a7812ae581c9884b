#include "cuda/float_types.cuh"
#include "cuda/launch.h"
#include "cuda/linear_4bit_kernels.h"

namespace qbits::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    linear_4bit_add_splits_kernel(const float* products, int splits, int64_t count, int64_t cols, const T* bias,
                                  T* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = 0.0F;
  for (int s = 0; s < splits; ++s) sum += products[s * count + i];
  if (bias != nullptr) sum += to_float(bias[i % cols]);
  out[i] = from_float<T>(sum);
}

}  // namespace

void linear_4bit_add_splits(const Linear4bitPlan& plan, const void* workspace, int64_t m, int64_t cols,
                            const void* bias, DType dtype, void* out, Stream stream) {
  constexpr std::string_view kOp = "linear_4bit";
  dispatch_float(dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(kOp, linear_4bit_add_splits_kernel<T>, {ceil_div(m * cols, kThreads), kThreads}, stream,
           static_cast<const float*>(workspace), plan.splits, m * cols, cols, static_cast<const T*>(bias),
           static_cast<T*>(out));
  });
}

}  // namespace qbits::cuda
