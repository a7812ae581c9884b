#pragma once

#include "ops/args.h"

namespace qbits {

struct QuantizeBlockwiseArgs {
  const void* x;
  DType x_dtype;
  int64_t n;
  const float* code;
  int64_t block_size;
  uint8_t* codes;
  float* absmax;
  Device device;
};

struct DequantizeBlockwiseArgs {
  const uint8_t* codes;
  const float* absmax;
  const float* code;
  int64_t block_size;
  int64_t n;
  void* out;
  DType out_dtype;
  Device device;
};

namespace cpu {
void quantize_blockwise(const QuantizeBlockwiseArgs& args);
void dequantize_blockwise(const DequantizeBlockwiseArgs& args);
}  // namespace cpu
namespace cuda {
void quantize_blockwise(const QuantizeBlockwiseArgs& args, Stream stream);
void dequantize_blockwise(const DequantizeBlockwiseArgs& args, Stream stream);
}  // namespace cuda

}  // namespace qbits
