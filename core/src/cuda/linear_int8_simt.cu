#include <algorithm>

#include "cuda/float_types.cuh"
#include "cuda/launch.h"
#include "cuda/linear_int8_kernels.h"

// linear_int8 for any size, alignment and device: dot products of four codes at a time.

namespace qbits::cuda {
namespace {

constexpr int kTile = 64;  // rows of x, and of the weight
constexpr int kWords = 8;  // of four codes, of the depth at a time
constexpr int kThreads = 256;
constexpr int kOwn = 4;  // rows of each that a thread has, 16 apart

template <class T>
struct SimtArgs {
  const T* x;
  QuantizedX quantized;
  int64_t pitch;  // of the codes of x
  const int8_t* codes;
  const float* scales;
  const T* bias;
  T* out;
  int64_t m;
  int64_t n;
  int64_t k;
  bool whole_words;  // rows of the weight begin at 4 bytes
};

// Four codes of a row of the weight, 0 behind its end.
template <class T>
__device__ int weight_word(const SimtArgs<T>& args, int64_t row, int64_t k) {
  if (row >= args.n || k >= args.k) return 0;
  const int8_t* const at = args.codes + row * args.k + k;
  if (args.whole_words) return *reinterpret_cast<const int*>(at);
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (k + i < args.k) word |= uint32_t{static_cast<uint8_t>(at[i])} << i * 8;
  }
  return static_cast<int>(word);
}

// kDeep: sums do not fit 32 bits.
template <class T, bool kDeep>
__global__ void __launch_bounds__(kThreads) linear_int8_simt_kernel(const __grid_constant__ SimtArgs<T> args) {
  __shared__ int x[kWords][kTile + 1];
  __shared__ int w[kWords][kTile + 1];
  const int64_t tiles_m = ceil_div(args.m, int64_t{kTile});
  const int64_t m0 = blockIdx.x % tiles_m * kTile;
  const int64_t n0 = blockIdx.x / tiles_m * kTile;
  const int tid = static_cast<int>(threadIdx.x);
  const int own_m = tid / 16;
  const int own_n = tid % 16;
  int sums[kOwn][kOwn] = {};
  int64_t deep[kOwn][kOwn] = {};
  for (int64_t k0 = 0; k0 < args.k; k0 += kWords * 4) {
    for (int i = tid; i < kTile * kWords; i += kThreads) {
      const int row = i / kWords;
      const int64_t k = k0 + i % kWords * 4;
      x[i % kWords][row] = m0 + row < args.m && k < args.k
                               ? *reinterpret_cast<const int*>(args.quantized.codes + (m0 + row) * args.pitch + k)
                               : 0;
      w[i % kWords][row] = weight_word(args, n0 + row, k);
    }
    __syncthreads();
#pragma unroll
    for (int word = 0; word < kWords; ++word) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
          sums[i][j] = __dp4a(x[word][own_m + i * 16], w[word][own_n + j * 16], sums[i][j]);
        }
      }
    }
    __syncthreads();
    if constexpr (kDeep) {
#pragma unroll
      for (int i = 0; i < kOwn * kOwn; ++i) {
        deep[i / kOwn][i % kOwn] += sums[i / kOwn][i % kOwn];
        sums[i / kOwn][i % kOwn] = 0;
      }
    }
  }

  const int outliers = args.quantized.count != nullptr ? *args.quantized.count : 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int64_t m = m0 + own_m + i * 16;
    if (m >= args.m) continue;
    const float a = __fdiv_rn(args.quantized.scales[m], kInt8Max);
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const int64_t n = n0 + own_n + j * 16;
      if (n >= args.n) continue;
      const float dot = kDeep ? __ll2float_rn(deep[i][j]) : __int2float_rn(sums[i][j]);
      float sum = __fmaf_rn(a, dot, 0.0F);
      for (int c = 0; c < outliers; ++c) {
        const int column = args.quantized.columns[c];
        sum =
            __fmaf_rn(to_float(args.x[m * args.k + column]), static_cast<float>(args.codes[n * args.k + column]), sum);
      }
      const float b = __fdiv_rn(args.scales[n], kInt8Max);
      const float bias = args.bias != nullptr ? to_float(args.bias[n]) : 0.0F;
      args.out[m * args.n + n] = from_float<T>(__fmaf_rn(b, sum, bias));
    }
  }
}

}  // namespace

void linear_int8_simt(const LinearInt8Args& args, const QuantizedX& x, const LinearInt8Plan& plan, Stream stream) {
  constexpr std::string_view op = "linear_int8";
  dispatch_float(args.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const SimtArgs<T> kernel_args{.x = static_cast<const T*>(args.x),
                                  .quantized = x,
                                  .pitch = linear_int8_pitch(args.k),
                                  .codes = args.codes,
                                  .scales = args.scales,
                                  .bias = static_cast<const T*>(args.bias),
                                  .out = static_cast<T*>(args.out),
                                  .m = args.m,
                                  .n = args.n,
                                  .k = args.k,
                                  .whole_words = args.k % 4 == 0 && is_aligned(args.codes, 4)};
    dispatch_bool(args.k > kInt8ExactDepth, [&](auto deep) {
      launch(op, linear_int8_simt_kernel<T, deep>, {.blocks = plan.blocks, .threads = kThreads}, stream, kernel_args);
    });
  });
}

}  // namespace qbits::cuda
