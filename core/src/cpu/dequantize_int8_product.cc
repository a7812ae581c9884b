#include "cpu/dequantize_int8_product_kernel.h"

#include <algorithm>

#include "cpu/large_output.h"
#include "cpu/thread_pool.h"

namespace qbits::cpu {

void dequantize_int8_product(const DequantizeInt8ProductArgs& args) {
  const bool stream = prepare_output(args.out, args.m * args.n * itemsize(args.dtype));
  parallel_for(args.m, std::max<int64_t>(1, 65536 / args.n),
               [&](int64_t begin, int64_t end) { dequantize_product_rows_isa(args, begin, end, stream); });
}

}  // namespace qbits::cpu
