#include "cuda/linear_4bit_kernels.h"
#include "cuda/linear_4bit_simt.cuh"

namespace qbits::cuda {
namespace {

constexpr int kRowWarps = 8;    // a warp per weight row
constexpr int kRowColumns = 4;  // rows of x a warp multiplies in one pass

// For few rows of x: each weight is dequantized once for kRowColumns products.
template <class T>
__global__ void __launch_bounds__(kSimtThreads) linear_4bit_simt_row(const SimtArgs args) {
  __shared__ float codebook[16];
  const Weight4bitView& w = args.weight;
  if (threadIdx.x < 16) codebook[threadIdx.x] = w.codebook[threadIdx.x];
  __syncthreads();

  const int lane = threadIdx.x % 32;
  const int64_t row_tiles = (args.rows + kRowWarps - 1) / kRowWarps;
  const int64_t n = blockIdx.x % row_tiles * kRowWarps + threadIdx.x / 32;
  const SimtRows rows = simt_rows<kRowColumns>(args, blockIdx.x / row_tiles);
  if (n >= args.rows || rows.begin >= rows.end) return;
  const T* x = static_cast<const T*>(args.a);

  float sum[kRowColumns] = {};
  for (int64_t k = lane * 8; k < w.cols; k += 32 * 8) {
    float values[8];
    dequantize8(w, codebook, rows.weight + n, k, values);
#pragma unroll
    for (int c = 0; c < kRowColumns; ++c) {
      if (rows.begin + c >= rows.end) break;
      const T* row = x + (rows.begin + c) * w.cols + k;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (k + j < w.cols) sum[c] = fmaf(values[j], to_float(row[j]), sum[c]);
      }
    }
  }
#pragma unroll
  for (int c = 0; c < kRowColumns; ++c) {
    for (int distance = 16; distance > 0; distance /= 2) sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], distance);
  }
  if (lane != 0) return;
  const float b = args.bias != nullptr ? to_float(static_cast<const T*>(args.bias)[rows.weight + n]) : 0.0f;
#pragma unroll
  for (int c = 0; c < kRowColumns; ++c) {
    if (rows.begin + c >= rows.end) break;
    static_cast<T*>(args.out)[(rows.begin + c) * args.rows + n] = from_float<T>(sum[c] + b);
  }
}

}  // namespace

void linear_4bit_simt(const Linear4bitArgs& args, const Linear4bitPlan& plan, Stream stream) {
  const SimtArgs simt{args.x, args.bias, args.out, args.m, make_view(args.weight), args.weight.rows};
  launch_linear_4bit_simt("linear_4bit", simt, args.dtype, plan, stream);
}

void launch_linear_4bit_simt(std::string_view op, const SimtArgs& args, DType dtype, const Linear4bitPlan& plan,
                             Stream stream) {
  dispatch_float(dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto kernel =
        plan.kernel == Linear4bitKernel::SimtRow ? linear_4bit_simt_row<T> : linear_4bit_simt_tile<T, false>;
    launch(op, kernel, {plan.blocks, kSimtThreads}, stream, args);
  });
}

}  // namespace qbits::cuda
