#include <algorithm>

#include "cpu/dequantize_int8_rowwise_kernel.h"
#include "cpu/large_output.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {

void dequantize_int8_rowwise(const DequantizeInt8RowwiseArgs& args) {
  const bool stream = prepare_output(args.out, args.rows * args.cols * itemsize(args.out_dtype));
  parallel_for(args.rows, std::max<int64_t>(1, 65536 / args.cols),
               [&](int64_t begin, int64_t end) { dequantize_int8_rows_isa(args, begin, end, stream); });
}

}  // namespace qbits::cpu
