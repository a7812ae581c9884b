#include "cpu/large_output.h"
#include "cpu/quantize_4bit_kernel.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {

void quantize_4bit(const Quantize4bitArgs& args) {
  const Encoder16 encoder = make_encoder16(*args.format);
  const int64_t blocks = (args.n - 1) / args.block_size + 1;
  const int64_t grain = std::max<int64_t>(1, 65536 / args.block_size);
  prepare_output(args.codes, args.n / 2);
  parallel_for(blocks, grain, [&](int64_t begin, int64_t end) { quantize_4bit_blocks_isa(args, encoder, begin, end); });
}

}  // namespace qbits::cpu
