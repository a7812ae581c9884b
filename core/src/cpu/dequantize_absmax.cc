#include "cpu/dequantize_absmax_kernel.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {

void dequantize_absmax(const DequantizeAbsmaxArgs& args) {
  const int64_t blocks = (args.n - 1) / kNestedBlockSize + 1;
  parallel_for(blocks, 64, [&](int64_t begin, int64_t end) { dequantize_absmax_blocks_isa(args, begin, end); });
}

}  // namespace qbits::cpu
