#pragma once

#include <vector>

#include "ops/linear_4bit_plan.h"
#include "qbits/export.h"

// Which CUDA kernel computes the products of a mixture of experts. How rows of x fall to experts is known on the device
// alone: kernels cut the rows of each expert into pieces of at most a tile's columns and find theirs from the offsets.
// A problem has `experts` from 1; its m are all rows of x, its n those of one expert's weight.

namespace qbits {

QBITS_API Linear4bitPlan grouped_linear_4bit_plan(const Linear4bitProblem& problem);
QBITS_API std::vector<Linear4bitPlan> grouped_linear_4bit_plans(const Linear4bitProblem& problem);

QBITS_API Linear4bitPlan grouped_linear_4bit_grad_x_plan(const Linear4bitProblem& problem);
QBITS_API std::vector<Linear4bitPlan> grouped_linear_4bit_grad_x_plans(const Linear4bitProblem& problem);

}  // namespace qbits
