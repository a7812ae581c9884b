#pragma once

#include "ops/args.h"

namespace qbits {

struct Embedding4bitArgs {
  const void* indices;
  DType index_dtype;  // Int64 or Int32
  int64_t count;
  Weight4bitArgs weight;
  void* out;  // [count, weight.cols]
  DType out_dtype;
  Device device;
};

namespace cpu {
void embedding_4bit(const Embedding4bitArgs& args);
}
namespace cuda {
void embedding_4bit(const Embedding4bitArgs& args, Stream stream);
}

}  // namespace qbits
