#pragma once

#include "ops/args.h"

namespace qbits {

struct Dequantize4bitArgs {
  const uint8_t* codes;
  AbsmaxArgs absmax;
  const Format* format;
  int64_t block_size;
  int64_t n;
  void* out;
  DType out_dtype;
  Device device;
};

namespace cpu {
void dequantize_4bit(const Dequantize4bitArgs& args);
}
namespace cuda {
void dequantize_4bit(const Dequantize4bitArgs& args, Stream stream);
}

}  // namespace qbits
