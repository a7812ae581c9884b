#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/linear_int8_weight_only_kernels.h"
#include "cuda/linear_int8_weight_only_mma.cuh"

namespace qbits::cuda {
namespace {

constexpr std::string_view kOp = "linear_int8_weight_only";

}  // namespace

LinearInt8WeightOnlyProblem problem_of(const LinearInt8WeightOnlyArgs& args) {
  const DeviceFacts& facts = device_facts(args.device, kOp);
  return {.n = args.n,
          .k = args.k,
          .m = args.m,
          .dtype = args.dtype,
          .aligned = all_on_16_bytes(args.x, args.codes),
          .compute_capability = facts.compute_capability,
          .sm_count = facts.sm_count};
}

void run(const LinearInt8WeightOnlyArgs& args, const LinearInt8WeightOnlyPlan& plan, Stream stream) {
  if (plan.kernel != LinearInt8WeightOnlyKernel::Mma) return linear_int8_weight_only_simt(args, plan, stream);
  if (plan.isa == MmaIsa::Sm75) return launch_linear_int8_weight_only<__half, MmaIsa::Sm75>(args, plan, stream);
  args.dtype == DType::Float16 ? launch_linear_int8_weight_only<__half, MmaIsa::Sm80>(args, plan, stream)
                               : launch_linear_int8_weight_only<__nv_bfloat16, MmaIsa::Sm80>(args, plan, stream);
}

int64_t linear_int8_weight_only_workspace(int64_t, int64_t, int64_t, DType, Device) { return 0; }

void linear_int8_weight_only(const LinearInt8WeightOnlyArgs& args, Stream stream) {
  const DeviceGuard guard(args.device, kOp);
  run(args, linear_int8_weight_only_plan(problem_of(args)), stream);
}

}  // namespace qbits::cuda
