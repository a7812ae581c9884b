#include <algorithm>
#include <cstring>

#include "cuda/decoders.cuh"
#include "ops/int8.h"

namespace qbits::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCodes = 8;  // of a run
constexpr int kRuns = 2;   // that a thread has in flight
constexpr int kShare = kThreads * kCodes * kRuns;

// out of a run: as many vectors as its elements fill.
template <class T>
__device__ void store_run(T* to, const T (&values)[kCodes]) {
  constexpr int kVectors = kCodes / kPerVector<T>;
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    uint4 vector;
    memcpy(&vector, values + v * kPerVector<T>, sizeof(vector));
    reinterpret_cast<uint4*>(to)[v] = vector;
  }
}

// A thread block for each share of a row.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    dequantize_rows(const int8_t* codes, const float* scales, Divisor across, int64_t shares, int64_t cols, T* out) {
  for (int64_t share = blockIdx.x; share < shares; share += gridDim.x) {
    const int64_t row = across(share);
    const int64_t begin = (share - row * across.size) * kShare + int64_t{threadIdx.x} * kCodes;
    const float scale = scales[row];
    const int8_t* const from = codes + row * cols;
    uint2 words[kRuns] = {};
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      const int64_t i = begin + r * (kThreads * kCodes);
      if constexpr (kAligned) {
        if (i < cols) words[r] = *reinterpret_cast<const uint2*>(from + i);
      } else {
#pragma unroll
        for (int k = 0; k < kCodes; ++k) {
          const uint32_t code = i + k < cols ? uint32_t{static_cast<uint8_t>(from[i + k])} : 0;
          (k < 4 ? words[r].x : words[r].y) |= code << k % 4 * 8;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      const int64_t i = begin + r * (kThreads * kCodes);
      T values[kCodes];
#pragma unroll
      for (int k = 0; k < kCodes; ++k) {
        const auto code = static_cast<int8_t>((k < 4 ? words[r].x : words[r].y) >> k % 4 * 8);
        values[k] = from_float<T>(__fmul_rn(__fmul_rn(static_cast<float>(code), scale), 1.0F / kInt8Max));
      }
      T* const to = out + row * cols + i;
      if constexpr (kAligned) {
        if (i < cols) store_run(to, values);
      } else {
#pragma unroll
        for (int k = 0; k < kCodes; ++k) {
          if (i + k < cols) to[k] = values[k];
        }
      }
    }
  }
}

}  // namespace

void dequantize_int8_rowwise(const DequantizeInt8RowwiseArgs& args, Stream stream) {
  constexpr std::string_view op = "dequantize_int8_rowwise";
  const DeviceGuard guard(args.device, op);
  const bool aligned = args.cols % kCodes == 0 && is_aligned(args.codes, kCodes) && is_aligned(args.out, 16);
  const int64_t across = ceil_div(args.cols, int64_t{kShare});
  const int64_t shares = args.rows * across;
  dispatch_float(args.out_dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_bool(aligned, [&](auto is_aligned) {
      launch(op, dequantize_rows<T, is_aligned>, {.blocks = std::min<int64_t>(shares, INT32_MAX), .threads = kThreads},
             stream, args.codes, args.scales, Divisor(across), shares, args.cols, static_cast<T*>(args.out));
    });
  });
}

}  // namespace qbits::cuda
