#include "cpu/float_rows.h"
#include "cpu/linear_4bit_kernel.h"
#include "ops/grouped_linear_4bit.h"

namespace qbits::cpu {

int64_t grouped_linear_4bit_grad_x_workspace(const Weight4bitArgs& weight, int64_t experts, int64_t m, DType) {
  return float_rows_size(m, weight.rows / experts);
}

void grouped_linear_4bit_grad_x(const GroupedLinear4bitGradXArgs& args) {
  const int64_t n = args.n();
  const int64_t size = itemsize(args.dtype);
  for (int64_t e = 0; e < args.experts; ++e) {
    const int64_t begin = args.offsets[e];
    const int64_t count = args.offsets[e + 1] - begin;
    if (count == 0) continue;
    const Linear4bitGradXArgs product{.grad = static_cast<const uint8_t*>(args.grad) + begin * n * size,
                                      .dtype = args.dtype,
                                      .m = count,
                                      .weight = args.weight,
                                      .out = static_cast<uint8_t*>(args.out) + begin * args.weight.cols * size,
                                      .workspace = args.workspace,
                                      .device = args.device};
    linear_4bit_grad_x_rows(product, {.begin = e * n, .count = n});
  }
}

}  // namespace qbits::cpu
