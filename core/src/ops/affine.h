#pragma once

#include "ops/args.h"

namespace qbits {

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
