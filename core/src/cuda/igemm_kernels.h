#pragma once

#include "ops/int8.h"
#include "ops/int8_mma_plan.h"

namespace qbits::cuda {

Int8MmaProblem problem_of(const IgemmArgs& args);

// igemm by one plan, with the workspace of the call; k is above 0.
void run(const IgemmArgs& args, const Int8MmaPlan& plan, Stream stream);

}  // namespace qbits::cuda
