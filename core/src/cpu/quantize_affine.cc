#include <algorithm>

#include "cpu/quantize_affine_kernel.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {

void quantize_affine(const QuantizeAffineArgs& args) {
  const int64_t groups_per_row = (args.cols - 1) / args.group_size + 1;
  const int64_t groups = args.rows * groups_per_row;
  // Rows of odd length share bytes of 4-bit codes; from every second row on they do not.
  const bool shared = args.format->is_4bit() && args.cols % 2 != 0 && args.rows > 1;
  const int64_t unit = shared ? 2 * groups_per_row : 1;
  const int64_t width = std::min(args.group_size, args.cols);
  const int64_t grain = std::max<int64_t>(1, 65536 / width / unit) * unit;
  parallel_for(groups, grain, [&](int64_t begin, int64_t end) { quantize_affine_groups_isa(args, begin, end); });
}

}  // namespace qbits::cpu
