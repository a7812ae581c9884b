#include "cuda/float_types.cuh"
#include "cuda/launch.h"
#include "cuda/linear_int8_weight_only_kernels.h"

// linear_int8_weight_only for any size, alignment, dtype and device, in float32.

namespace qbits::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowM = kLinearInt8WeightOnlyRowM;
constexpr int kRowN = kLinearInt8WeightOnlyRowN;
constexpr int kTile = kLinearInt8WeightOnlySimtTile;
constexpr int kDepth = 32;
constexpr int kCodes = 8;  // that a lane of the row kernel takes at a time
// Depth steps added up apart before they join the total: keeps long float32 sums accurate.
constexpr int kSumSteps = 8;
static_assert(kRowN * 32 == kThreads);

template <class T>
struct SimtArgs {
  const T* x;
  const int8_t* codes;
  const float* scales;
  const T* bias;
  T* out;
  int64_t m;
  int64_t n;
  int64_t k;
};

template <class T>
__device__ void write(const SimtArgs<T>& args, int64_t m, int64_t n, float sum) {
  const float scale = __fdiv_rn(args.scales[n], kInt8Max);
  args.out[m * args.n + n] = from_float<T>(__fmaf_rn(scale, sum, args.bias != nullptr ? to_float(args.bias[n]) : 0.0F));
}

// A warp multiplies its row of the weight by kRowM rows of x. kAligned: rows of both begin at whole runs.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) linear_int8_weight_only_row(const __grid_constant__ SimtArgs<T> args) {
  const int64_t blocks_n = ceil_div(args.n, int64_t{kRowN});
  const int64_t m0 = blockIdx.x / blocks_n * kRowM;
  const int64_t n = blockIdx.x % blocks_n * kRowN + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (n >= args.n) return;
  const int8_t* const codes = args.codes + n * args.k;
  float sums[kRowM] = {};
  for (int64_t k = int64_t{lane} * kCodes; k < args.k; k += 32 * kCodes) {
    const int valid = static_cast<int>(min(args.k - k, int64_t{kCodes}));
    uint32_t words[2] = {};
    if constexpr (kAligned) {
      const uint2 both = *reinterpret_cast<const uint2*>(codes + k);
      words[0] = both.x, words[1] = both.y;
    } else {
#pragma unroll
      for (int i = 0; i < kCodes; ++i) {
        if (i < valid) words[i / 4] |= uint32_t{static_cast<uint8_t>(codes[k + i])} << i % 4 * 8;
      }
    }
#pragma unroll
    for (int r = 0; r < kRowM; ++r) {
      if (m0 + r >= args.m) continue;
      const T* const x = args.x + (m0 + r) * args.k;
      const Run<T, kCodes> run = kAligned ? load_run<kCodes>(x, k) : load_run<kCodes>(x, k, valid);
#pragma unroll
      for (int i = 0; i < kCodes; ++i) {
        sums[r] = fmaf(run[i], static_cast<float>(static_cast<int8_t>(words[i / 4] >> i % 4 * 8)), sums[r]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRowM; ++r) {
    for (int step = 16; step > 0; step /= 2) sums[r] += __shfl_xor_sync(~0U, sums[r], step);
    if (lane == 0 && m0 + r < args.m) write(args, m0 + r, n, sums[r]);
  }
}

// A thread computes 4 x 4 outputs.
template <class T>
__global__ void __launch_bounds__(kThreads) linear_int8_weight_only_tile(const __grid_constant__ SimtArgs<T> args) {
  __shared__ __align__(16) float x_tile[kDepth][kTile + 4];
  __shared__ __align__(16) float w_tile[kDepth][kTile + 4];
  const int64_t tiles_m = ceil_div(args.m, int64_t{kTile});
  const int64_t m0 = blockIdx.x % tiles_m * kTile;
  const int64_t n0 = blockIdx.x / tiles_m * kTile;
  const int tid = static_cast<int>(threadIdx.x);
  const int ty = tid / 16;
  const int tx = tid % 16;
  float total[4][4] = {};
  float sum[4][4] = {};
  int step = 0;
  for (int64_t k0 = 0; k0 < args.k; k0 += kDepth) {
    const int row = tid / 4;
    const int first = tid % 4 * 8;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int64_t k = k0 + first + i;
      x_tile[first + i][row] = m0 + row < args.m && k < args.k ? to_float(args.x[(m0 + row) * args.k + k]) : 0.0F;
      w_tile[first + i][row] =
          n0 + row < args.n && k < args.k ? static_cast<float>(args.codes[(n0 + row) * args.k + k]) : 0.0F;
    }
    __syncthreads();
#pragma unroll 8
    for (int r = 0; r < kDepth; ++r) {
      const float4 xv = *reinterpret_cast<const float4*>(&x_tile[r][ty * 4]);
      const float4 wv = *reinterpret_cast<const float4*>(&w_tile[r][tx * 4]);
      const float xs[4] = {xv.x, xv.y, xv.z, xv.w};
      const float ws[4] = {wv.x, wv.y, wv.z, wv.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(xs[i], ws[j], sum[i][j]);
      }
    }
    __syncthreads();
    if (++step == kSumSteps || k0 + kDepth >= args.k) {
      step = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          total[i][j] += sum[i][j];
          sum[i][j] = 0.0F;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t m = m0 + ty * 4 + i;
      const int64_t n = n0 + tx * 4 + j;
      if (m < args.m && n < args.n) write(args, m, n, total[i][j]);
    }
  }
}

}  // namespace

void linear_int8_weight_only_simt(const LinearInt8WeightOnlyArgs& args, const LinearInt8WeightOnlyPlan& plan,
                                  Stream stream) {
  constexpr std::string_view op = "linear_int8_weight_only";
  const bool aligned = args.k % kCodes == 0 && is_aligned(args.x, 16) && is_aligned(args.codes, kCodes);
  dispatch_float(args.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const SimtArgs<T> kernel_args{.x = static_cast<const T*>(args.x),
                                  .codes = args.codes,
                                  .scales = args.scales,
                                  .bias = static_cast<const T*>(args.bias),
                                  .out = static_cast<T*>(args.out),
                                  .m = args.m,
                                  .n = args.n,
                                  .k = args.k};
    const LaunchShape shape{.blocks = plan.blocks, .threads = kThreads};
    if (plan.kernel == LinearInt8WeightOnlyKernel::SimtTile) {
      return launch(op, linear_int8_weight_only_tile<T>, shape, stream, kernel_args);
    }
    dispatch_bool(aligned, [&](auto is_aligned) {
      launch(op, linear_int8_weight_only_row<T, is_aligned>, shape, stream, kernel_args);
    });
  });
}

}  // namespace qbits::cuda
