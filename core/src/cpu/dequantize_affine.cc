#include <algorithm>

#include "cpu/dequantize_affine_kernel.h"
#include "cpu/large_output.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {

void dequantize_affine(const DequantizeAffineArgs& args) {
  const int64_t groups = args.rows * ((args.cols - 1) / args.group_size + 1);
  const int64_t grain = std::max<int64_t>(1, 65536 / std::min(args.group_size, args.cols));
  const bool stream = prepare_output(args.out, args.rows * args.cols * itemsize(args.out_dtype));
  parallel_for(groups, grain,
               [&](int64_t begin, int64_t end) { dequantize_affine_groups_isa(args, begin, end, stream); });
}

}  // namespace qbits::cpu
