#include <algorithm>

#include "cuda/float_types.cuh"
#include "cuda/launch.h"
#include "ops/int8.h"

namespace qbits::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kCodes = 8;  // that a thread takes at a time

template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    dequantize_rows(const int8_t* codes, const float* scales, int64_t rows, int64_t cols, T* out) {
  const int64_t across = ceil_div(cols, int64_t{kThreads} * kCodes);  // thread blocks' shares of a row
  for (int64_t share = blockIdx.x; share < rows * across; share += gridDim.x) {
    const int64_t r = share / across;
    const float scale = scales[r];
    const int8_t* const from = codes + r * cols;
    T* const to = out + r * cols;
    const int64_t i = ((share - r * across) * kThreads + threadIdx.x) * kCodes;
    if (i < cols) {
      const int valid = static_cast<int>(min(cols - i, int64_t{kCodes}));
      uint32_t words[2] = {};
      if constexpr (kAligned) {
        const uint2 both = *reinterpret_cast<const uint2*>(from + i);
        words[0] = both.x, words[1] = both.y;
      } else {
#pragma unroll
        for (int k = 0; k < kCodes; ++k) {
          if (k < valid) words[k / 4] |= uint32_t{static_cast<uint8_t>(from[i + k])} << k % 4 * 8;
        }
      }
#pragma unroll
      for (int k = 0; k < kCodes; ++k) {
        const auto code = static_cast<int8_t>(words[k / 4] >> k % 4 * 8);
        const T value = from_float<T>(__fmul_rn(__fmul_rn(static_cast<float>(code), scale), 1.0F / kInt8Max));
        if (kAligned || k < valid) to[i + k] = value;
      }
    }
  }
}

}  // namespace

void dequantize_int8_rowwise(const DequantizeInt8RowwiseArgs& args, Stream stream) {
  constexpr std::string_view op = "dequantize_int8_rowwise";
  const DeviceGuard guard(args.device, op);
  const bool aligned = args.cols % kCodes == 0 && is_aligned(args.codes, kCodes) && is_aligned(args.out, 16);
  const int64_t shares = args.rows * ceil_div(args.cols, int64_t{kThreads} * kCodes);
  dispatch_float(args.out_dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_bool(aligned, [&](auto is_aligned) {
      launch(op, dequantize_rows<T, is_aligned>, {.blocks = std::min<int64_t>(shares, INT32_MAX), .threads = kThreads},
             stream, args.codes, args.scales, args.rows, args.cols, static_cast<T*>(args.out));
    });
  });
}

}  // namespace qbits::cuda
