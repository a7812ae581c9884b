#pragma once

#include <string>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/linear_int8_weight_only_mma.cuh"

namespace qbits::cuda {

template <class T, MmaIsa kIsa, int kTile>
void launch_linear_int8_weight_only_tile(const WeightOnlyMmaArgs& args, const LinearInt8WeightOnlyPlan& plan,
                                         Stream stream) {
  constexpr std::string_view kOp = "linear_int8_weight_only";
  const auto kernel = linear_int8_weight_only_mma_kernel<T, kIsa, kTile>;
  allow_shared_memory(reinterpret_cast<const void*>(kernel), kOp);
  launch(kOp, kernel, {plan.blocks, kMmaThreads, static_cast<size_t>(plan.shared_bytes())}, stream, args);
}

template <class T, MmaIsa kIsa>
void launch_linear_int8_weight_only(const LinearInt8WeightOnlyArgs& args, const LinearInt8WeightOnlyPlan& plan,
                                    Stream stream) {
  const WeightOnlyMmaArgs mma{.x = args.x,
                              .codes = args.codes,
                              .scales = args.scales,
                              .bias = args.bias,
                              .out = args.out,
                              .m = args.m,
                              .n = args.n,
                              .k = args.k,
                              .stages = plan.stages};
  switch (plan.tile) {
    case 0:
      return launch_linear_int8_weight_only_tile<T, kIsa, 0>(mma, plan, stream);
    case 1:
      return launch_linear_int8_weight_only_tile<T, kIsa, 1>(mma, plan, stream);
    case 2:
      return launch_linear_int8_weight_only_tile<T, kIsa, 2>(mma, plan, stream);
    case 3:
      return launch_linear_int8_weight_only_tile<T, kIsa, 3>(mma, plan, stream);
    default:
      throw Error(ErrorCode::Unsupported,
                  "[linear_int8_weight_only] tile: got " + std::to_string(plan.tile) + ", want 0 to 3");
  }
}

}  // namespace qbits::cuda
