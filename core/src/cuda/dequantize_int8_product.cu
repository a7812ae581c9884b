#include <algorithm>

#include "cuda/float_types.cuh"
#include "cuda/launch.h"
#include "cuda/linear_4bit_ptx.cuh"
#include "ops/int8.h"

namespace qbits::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kOwn = 8;            // columns of a lane
constexpr int kStrip = 32 * kOwn;  // and of a warp
constexpr int kOwnRows = 4;        // of a warp, loaded together
constexpr int kRows = kWarps * kOwnRows;

// A block has some rows of a strip of columns, whose factors and bias its threads keep. kAligned: whole runs of kOwn,
// on 16-byte boundaries; else a lane's columns lie 32 apart, so that those of a warp lie side by side.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kWarps * 32)
    dequantize_product(const int32_t* dots, const float* row_scales, const float* column_scales, const T* bias,
                       int64_t m, int64_t n, T* out) {
  const int64_t strips = ceil_div(n, int64_t{kStrip});
  const int64_t tiles = strips * ceil_div(m, int64_t{kRows});
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto column = [&](int k) { return kAligned ? lane * kOwn + k : k * 32 + lane; };
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t n0 = tile % strips * kStrip;
    const int64_t m0 = tile / strips * kRows + warp;
    if (kAligned && n0 + column(0) >= n) continue;
    float b[kOwn];
    float c[kOwn];
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const int64_t at = n0 + column(k);
      const bool inside = kAligned || at < n;
      b[k] = inside ? __fdiv_rn(column_scales[at], kInt8Max) : 0.0F;
      c[k] = inside && bias != nullptr ? to_float(bias[at]) : 0.0F;
    }
    int own[kOwnRows][kOwn] = {};
    float a[kOwnRows] = {};
#pragma unroll
    for (int r = 0; r < kOwnRows; ++r) {
      const int64_t row = m0 + r * kWarps;
      if (row >= m) continue;
      a[r] = row_scales[row];
      const int32_t* const from = dots + row * n + n0;
      if constexpr (kAligned) {
#pragma unroll
        for (int v = 0; v < kOwn / 4; ++v) {
          const int4 four = __ldcs(reinterpret_cast<const int4*>(from + column(0)) + v);
          own[r][v * 4] = four.x, own[r][v * 4 + 1] = four.y, own[r][v * 4 + 2] = four.z, own[r][v * 4 + 3] = four.w;
        }
      } else {
#pragma unroll
        for (int k = 0; k < kOwn; ++k) {
          if (n0 + column(k) < n) own[r][k] = from[column(k)];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kOwnRows; ++r) {
      const int64_t row = m0 + r * kWarps;
      if (row >= m) continue;
      const float factor = __fdiv_rn(a[r], kInt8Max);
      float value[kOwn];
#pragma unroll
      for (int k = 0; k < kOwn; ++k) {
        value[k] = __fmaf_rn(b[k], __fmaf_rn(factor, __int2float_rn(own[r][k]), 0.0F), c[k]);
      }
      T* const to = out + row * n + n0;
      if constexpr (!kAligned) {
#pragma unroll
        for (int k = 0; k < kOwn; ++k) {
          if (n0 + column(k) < n) to[column(k)] = from_float<T>(value[k]);
        }
      } else if constexpr (sizeof(T) == 2) {
        *reinterpret_cast<uint4*>(to + column(0)) =
            make_uint4(round_pair<T>(value[0], value[1]), round_pair<T>(value[2], value[3]),
                       round_pair<T>(value[4], value[5]), round_pair<T>(value[6], value[7]));
      } else {
#pragma unroll
        for (int v = 0; v < kOwn / 4; ++v) {
          reinterpret_cast<float4*>(to + column(0))[v] =
              make_float4(from_float<T>(value[v * 4]), from_float<T>(value[v * 4 + 1]), from_float<T>(value[v * 4 + 2]),
                          from_float<T>(value[v * 4 + 3]));
        }
      }
    }
  }
}

}  // namespace

void dequantize_int8_product(const DequantizeInt8ProductArgs& args, Stream stream) {
  constexpr std::string_view op = "dequantize_int8_product";
  const DeviceGuard guard(args.device, op);
  const bool aligned = args.n % kOwn == 0 && all_on_16_bytes(args.dots, args.out);
  const int64_t tiles = ceil_div(args.n, int64_t{kStrip}) * ceil_div(args.m, int64_t{kRows});
  dispatch_float(args.dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_bool(aligned, [&](auto is_aligned) {
      launch(op, dequantize_product<T, is_aligned>,
             {.blocks = std::min<int64_t>(tiles, INT32_MAX), .threads = kWarps * 32}, stream, args.dots,
             args.row_scales, args.column_scales, static_cast<const T*>(args.bias), args.m, args.n,
             static_cast<T*>(args.out));
    });
  });
}

}  // namespace qbits::cuda
