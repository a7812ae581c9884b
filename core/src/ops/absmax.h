#pragma once

#include "ops/args.h"

namespace qbits {

struct QuantizeAbsmaxArgs {
  const float* absmax;
  int64_t n;
  const float* nested_code;
  uint8_t* values;
  float* nested_absmax;
  float* offset;
  Device device;
};

struct DequantizeAbsmaxArgs {
  AbsmaxArgs absmax;
  int64_t n;
  float* out;
  Device device;
};

// The order in which the mean is summed, the same on every device so that the bits are: chunk c holds
// elements [c * kMeanChunk, (c + 1) * kMeanChunk); lane l of a chunk adds its elements l, l + kMeanLanes, ...
// in ascending order in float64; lanes are then added pairwise (l += l + 128, 64, ... 1) and chunk sums
// in ascending order. The sum divided by n is rounded to float32.
inline constexpr int64_t kMeanChunk = 16384;
inline constexpr int kMeanLanes = 256;

namespace cpu {
void quantize_absmax(const QuantizeAbsmaxArgs& args);
void dequantize_absmax(const DequantizeAbsmaxArgs& args);
}  // namespace cpu
namespace cuda {
void quantize_absmax(const QuantizeAbsmaxArgs& args, Stream stream);
void dequantize_absmax(const DequantizeAbsmaxArgs& args, Stream stream);
}  // namespace cuda

}  // namespace qbits
