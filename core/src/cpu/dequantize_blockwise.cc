#include <algorithm>

#include "cpu/dequantize_blockwise_kernel.h"
#include "cpu/large_output.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {

void dequantize_blockwise(const DequantizeBlockwiseArgs& args) {
  const int64_t blocks = (args.n - 1) / args.block_size + 1;
  const int64_t grain = std::max<int64_t>(1, 65536 / args.block_size);
  const bool stream = prepare_output(args.out, args.n * itemsize(args.out_dtype));
  parallel_for(blocks, grain,
               [&](int64_t begin, int64_t end) { dequantize_blockwise_blocks_isa(args, begin, end, stream); });
}

}  // namespace qbits::cpu
