#pragma once

#include "ops/linear_4bit.h"
#include "ops/linear_4bit_ahead_plan.h"

// The host's side of the kernel that dequantizes ahead.

namespace qbits::cuda {

void linear_4bit_ahead(const Linear4bitArgs& args, const AheadPlan& plan, Stream stream);
void linear_4bit_grad_x_ahead(const Linear4bitGradXArgs& args, const AheadPlan& plan, Stream stream);

}  // namespace qbits::cuda
