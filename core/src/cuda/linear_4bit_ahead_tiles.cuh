#pragma once

#include <string>

#include "cuda/linear_4bit_ahead_kernel.cuh"
#include "cuda/linear_4bit_ahead_launch.cuh"

namespace qbits::cuda {

template <class T, bool kAffine, bool kTransposed>
void launch_ahead_tile(const AheadArgs& args, const AheadPlan& plan, Stream stream) {
  switch (plan.columns) {
    case 256:
      return launch_ahead_shape<T, AheadShape<256, kAffine, kTransposed>>(args, plan, stream);
    case 128:
      return launch_ahead_shape<T, AheadShape<128, kAffine, kTransposed>>(args, plan, stream);
  }
  throw Error(ErrorCode::Unsupported,
              "[linear_4bit] ahead tile: got " + std::to_string(plan.columns) + " columns, want 256 or 128");
}

}  // namespace qbits::cuda
