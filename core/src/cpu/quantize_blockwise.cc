#include <algorithm>

#include "cpu/quantize_blockwise_kernel.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {

void quantize_blockwise(const QuantizeBlockwiseArgs& args) {
  const Encoder256 encoder = make_encoder256(args.code);
  const int64_t blocks = (args.n - 1) / args.block_size + 1;
  const int64_t grain = std::max<int64_t>(1, 65536 / args.block_size);
  parallel_for(blocks, grain,
               [&](int64_t begin, int64_t end) { quantize_blockwise_blocks_isa(args, encoder, begin, end); });
}

}  // namespace qbits::cpu
