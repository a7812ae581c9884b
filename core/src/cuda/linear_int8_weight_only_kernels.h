#pragma once

#include "ops/int8.h"
#include "ops/linear_int8_weight_only_plan.h"
#include "qbits/export.h"

namespace qbits::cuda {

QBITS_API LinearInt8WeightOnlyProblem problem_of(const LinearInt8WeightOnlyArgs& args);

// linear_int8_weight_only by one plan.
QBITS_API void run(const LinearInt8WeightOnlyArgs& args, const LinearInt8WeightOnlyPlan& plan, Stream stream);

void linear_int8_weight_only_simt(const LinearInt8WeightOnlyArgs& args, const LinearInt8WeightOnlyPlan& plan,
                                  Stream stream);

}  // namespace qbits::cuda
