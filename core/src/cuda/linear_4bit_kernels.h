#pragma once

#include "ops/linear_4bit.h"
#include "ops/linear_4bit_plan.h"
#include "qbits/export.h"

// Launchers of linear_4bit and its gradient. Each runs exactly the plan it is given, on the current device.

namespace qbits::cuda {

void linear_4bit_simt(const Linear4bitArgs& args, const Linear4bitPlan& plan, Stream stream);
void linear_4bit_mma(const Linear4bitArgs& args, const Linear4bitPlan& plan, Stream stream);
void linear_4bit_stream(const Linear4bitArgs& args, const Linear4bitPlan& plan, Stream stream);
void linear_4bit_grad_x_simt(const Linear4bitGradXArgs& args, const Linear4bitPlan& plan, Stream stream);
void linear_4bit_grad_x_mma(const Linear4bitGradXArgs& args, const Linear4bitPlan& plan, Stream stream);

// out = the sum of the plan's float32 products [splits, m, cols] in the workspace, in order, and the bias.
void linear_4bit_add_splits(const Linear4bitPlan& plan, const void* workspace, int64_t m, int64_t cols,
                            const void* bias, DType dtype, void* out, Stream stream);

// Runs a plan as it stands: what the entry points do after choosing, and what tests force.
QBITS_API void run(const Linear4bitArgs& args, const Linear4bitPlan& plan, Stream stream);
QBITS_API void run(const Linear4bitGradXArgs& args, const Linear4bitPlan& plan, Stream stream);

// The problem of a call on the current device.
QBITS_API Linear4bitProblem problem_of(const Linear4bitArgs& args);
QBITS_API Linear4bitProblem problem_of(const Linear4bitGradXArgs& args);

}  // namespace qbits::cuda
