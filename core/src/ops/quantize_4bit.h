#pragma once

#include "ops/args.h"

namespace qbits {

struct Quantize4bitArgs {
  const void* x;
  DType x_dtype;
  int64_t n;
  const Format* format;
  int64_t block_size;
  uint8_t* codes;
  float* absmax;
  Device device;
};

namespace cpu {
void quantize_4bit(const Quantize4bitArgs& args);
}
namespace cuda {
void quantize_4bit(const Quantize4bitArgs& args, Stream stream);
}

}  // namespace qbits
