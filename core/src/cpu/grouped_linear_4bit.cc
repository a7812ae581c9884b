#include "ops/grouped_linear_4bit.h"
#include "cpu/float_rows.h"
#include "cpu/linear_4bit_kernel.h"

namespace qbits::cpu {

// One expert after the other: each product has threads of its own. Workspace for one that has all rows of x.

int64_t grouped_linear_4bit_workspace(const Weight4bitArgs& weight, int64_t, int64_t m, DType) {
  return float_rows_size(m, weight.cols);
}

void grouped_linear_4bit(const GroupedLinear4bitArgs& args) {
  const int64_t n = args.n();
  const int64_t size = itemsize(args.dtype);
  for (int64_t e = 0; e < args.experts; ++e) {
    const int64_t begin = args.offsets[e];
    const int64_t count = args.offsets[e + 1] - begin;
    if (count == 0) continue;
    const Linear4bitArgs product{.x = static_cast<const uint8_t*>(args.x) + begin * args.weight.cols * size,
                                 .dtype = args.dtype,
                                 .m = count,
                                 .weight = args.weight,
                                 .bias = args.bias,
                                 .out = static_cast<uint8_t*>(args.out) + begin * n * size,
                                 .workspace = args.workspace,
                                 .device = args.device};
    linear_4bit_rows(product, {.begin = e * n, .count = n});
  }
}

std::string grouped_linear_4bit_plan(int64_t experts, int64_t rows, int64_t cols, int64_t m) {
  const Weight4bitArgs one{.rows = rows, .cols = cols};
  return std::to_string(experts) + (experts == 1 ? " expert" : " experts") +
         " in turn, at most with all rows of x: " + linear_4bit_plan(one, m);
}

}  // namespace qbits::cpu
