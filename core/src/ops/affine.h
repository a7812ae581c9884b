#pragma once

#include "ops/args.h"

namespace qbits {

// The arithmetic of a group, each step rounded to float32, with levels L = 2^bits - 1:
//   lo = min(0, min x), hi = max(0, max x); s = hi / L - lo / L, rounded to the dtype of the scales
//   s not finite, or an x that is not:  scale = NaN (0x7fc00000 rounded to the dtype), zero = 0, codes 0
//   s = 0 (zeros, or too small for the dtype):  scale = 0, zero = 0, codes 0
//   else  zero = min(rint(-lo / s), L), code = clamp(rint(x / s) + zero, 0, L)
// The minimum keeps 0.0 exact where rounding s down would push the zero past L. A zero of 0 is +0.
// The last nibble of an odd number of int4 codes is 0.

struct QuantizeAffineArgs {
  const void* x;
  DType x_dtype;
  int64_t rows;
  int64_t cols;
  const Format* format;
  int64_t group_size;  // already the row length where the caller said 0
  uint8_t* codes;
  void* scales;
  void* zeros;
  DType scale_dtype;
  Device device;
};

struct DequantizeAffineArgs {
  const uint8_t* codes;
  const void* scales;
  const void* zeros;
  DType scale_dtype;
  const Format* format;
  int64_t group_size;
  int64_t rows;
  int64_t cols;
  void* out;
  DType out_dtype;
  Device device;
};

namespace cpu {
void quantize_affine(const QuantizeAffineArgs& args);
void dequantize_affine(const DequantizeAffineArgs& args);
}  // namespace cpu
namespace cuda {
void quantize_affine(const QuantizeAffineArgs& args, Stream stream);
void dequantize_affine(const DequantizeAffineArgs& args, Stream stream);
}  // namespace cuda

}  // namespace qbits
