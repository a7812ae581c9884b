#pragma once

#include <string>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/linear_4bit_stream.cuh"

namespace qbits::cuda {

template <class T, bool kAffine, bool kGrouped, int kColumnTiles, int kWarpSlots, bool kPhased>
void launch_linear_4bit_stream_slots(const StreamArgs& args, const Linear4bitPlan& plan, Stream stream) {
  constexpr std::string_view kOp = "linear_4bit";
  const auto kernel = plan.chunk == 64
                          ? linear_4bit_stream_kernel<T, kColumnTiles, 64, kAffine, kGrouped, kWarpSlots, kPhased>
                          : linear_4bit_stream_kernel<T, kColumnTiles, 32, kAffine, kGrouped, kWarpSlots, kPhased>;
  allow_shared_memory(reinterpret_cast<const void*>(kernel), kOp);
  const LaunchShape shape{.blocks = plan.blocks,
                          .threads = ((plan.warps + 3) / 4 * 4 + Linear4bitStream::kServiceWarps) * 32,
                          .shared_bytes = static_cast<size_t>(plan.shared_bytes),
                          .cluster = plan.splits,
                          .overlaps = true};
  launch(kOp, kernel, shape, stream, args);
}

template <class T, bool kAffine, bool kGrouped, int kColumnTiles>
void launch_linear_4bit_stream_columns(const StreamArgs& args, const Linear4bitPlan& plan, Stream stream) {
  if constexpr (kColumnTiles == 1 && !kGrouped) {
    if (plan.phases > 1) {
      constexpr int kSlots = Linear4bitStream::kPhaseSlots;
      return launch_linear_4bit_stream_slots<T, kAffine, false, 1, kSlots, true>(args, plan, stream);
    }
  }
  stream_warp_slots(plan) == 1
      ? launch_linear_4bit_stream_slots<T, kAffine, kGrouped, kColumnTiles, 1, false>(args, plan, stream)
      : launch_linear_4bit_stream_slots<T, kAffine, kGrouped, kColumnTiles, 2, false>(args, plan, stream);
}

template <class T, bool kAffine, bool kGrouped>
void launch_linear_4bit_stream(const StreamArgs& args, const Linear4bitPlan& plan, Stream stream) {
  plan.column_tiles == 1 ? launch_linear_4bit_stream_columns<T, kAffine, kGrouped, 1>(args, plan, stream)
                         : launch_linear_4bit_stream_columns<T, kAffine, kGrouped, 2>(args, plan, stream);
}

}  // namespace qbits::cuda
