#pragma once

#include "ops/grouped_linear_4bit.h"
#include "ops/grouped_linear_4bit_plan.h"
#include "qbits/export.h"

// Launchers of grouped_linear_4bit and its gradient. Each runs exactly the plan it is given, on the current device.

namespace qbits::cuda {

void grouped_linear_4bit_simt(const GroupedLinear4bitArgs& args, const Linear4bitPlan& plan, Stream stream);
void grouped_linear_4bit_mma(const GroupedLinear4bitArgs& args, const Linear4bitPlan& plan, Stream stream);
void grouped_linear_4bit_stream(const GroupedLinear4bitArgs& args, const Linear4bitPlan& plan, Stream stream);
void grouped_linear_4bit_wgmma(const GroupedLinear4bitArgs& args, const WgmmaPlan& plan, Stream stream);
void grouped_linear_4bit_grad_x_simt(const GroupedLinear4bitGradXArgs& args, const Linear4bitPlan& plan, Stream stream);
void grouped_linear_4bit_grad_x_mma(const GroupedLinear4bitGradXArgs& args, const Linear4bitPlan& plan, Stream stream);
void grouped_linear_4bit_grad_x_wgmma(const GroupedLinear4bitGradXArgs& args, const WgmmaPlan& plan, Stream stream);

// Runs a plan as it stands: what the entry points do after choosing, and what tests force.
QBITS_API void run(const GroupedLinear4bitArgs& args, const Linear4bitPlan& plan, Stream stream);
QBITS_API void run(const GroupedLinear4bitGradXArgs& args, const Linear4bitPlan& plan, Stream stream);

// The problem of a call on the current device.
QBITS_API Linear4bitProblem problem_of(const GroupedLinear4bitArgs& args);
QBITS_API Linear4bitProblem problem_of(const GroupedLinear4bitGradXArgs& args);

}  // namespace qbits::cuda
