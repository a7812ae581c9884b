#pragma once

#include <string>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/linear_4bit_mma.cuh"

namespace qbits::cuda {

template <class T, MmaIsa kIsa, bool kAffine, int kTile>
void launch_linear_4bit_mma_tile(const MmaArgs& args, const Linear4bitPlan& plan, Stream stream) {
  constexpr std::string_view kOp = "linear_4bit";
  const auto kernel = plan.chunk == 64 ? linear_4bit_mma_kernel<T, kIsa, kAffine, kTile, 64>
                                       : linear_4bit_mma_kernel<T, kIsa, kAffine, kTile, 32>;
  allow_shared_memory(reinterpret_cast<const void*>(kernel), kOp);
  launch(kOp, kernel, {plan.blocks, kMmaThreads, static_cast<size_t>(plan.shared_bytes)}, stream, args);
}

template <class T, MmaIsa kIsa, bool kAffine>
void launch_linear_4bit_mma(const MmaArgs& args, const Linear4bitPlan& plan, Stream stream) {
  switch (plan.tile) {
    case 0:
      return launch_linear_4bit_mma_tile<T, kIsa, kAffine, 0>(args, plan, stream);
    case 1:
      return launch_linear_4bit_mma_tile<T, kIsa, kAffine, 1>(args, plan, stream);
    case 2:
      return launch_linear_4bit_mma_tile<T, kIsa, kAffine, 2>(args, plan, stream);
    case 3:
      return launch_linear_4bit_mma_tile<T, kIsa, kAffine, 3>(args, plan, stream);
    case 4:
      return launch_linear_4bit_mma_tile<T, kIsa, kAffine, 4>(args, plan, stream);
    default:
      throw Error(ErrorCode::Unsupported, "[linear_4bit] tile: got " + std::to_string(plan.tile) + ", want 0 to 4");
  }
}

}  // namespace qbits::cuda
