#include <algorithm>

#include "cpu/embedding_4bit_kernel.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {

void embedding_4bit(const Embedding4bitArgs& args) {
  const int64_t grain = std::max<int64_t>(1, 16384 / args.weight.cols);
  parallel_for(args.count, grain, [&](int64_t begin, int64_t end) { embedding_4bit_rows_isa(args, begin, end); });
}

}  // namespace qbits::cpu
