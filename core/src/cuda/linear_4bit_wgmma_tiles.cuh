#pragma once

#include <string>

#include "cuda/linear_4bit_wgmma_launch.cuh"

namespace qbits::cuda {

template <class T, bool kAffine, bool kTransposed, bool kGrouped>
void launch_wgmma_tile(const WgmmaArgs& args, const WgmmaPlan& plan, Stream stream) {
  const auto is = [&](int columns, int groups, WgmmaDecode decode) {
    return plan.columns == columns && plan.groups == groups && plan.decode == decode;
  };
#define QBITS_WGMMA_TILE(columns, groups, decode)                                                                 \
  if (is(columns, groups, decode))                                                                                \
    return launch_wgmma_shape<T, WgmmaShape<columns, groups, decode, kAffine, kTransposed, kGrouped>>(args, plan, \
                                                                                                      stream);
  QBITS_WGMMA_TILE(256, 2, WgmmaDecode::Weights)
  QBITS_WGMMA_TILE(128, 2, WgmmaDecode::Weights)
  if constexpr (!kTransposed) {
    QBITS_WGMMA_TILE(64, 2, WgmmaDecode::Weights)
    if constexpr (kAffine || std::is_same_v<T, __nv_bfloat16>) {
      QBITS_WGMMA_TILE(256, 2, WgmmaDecode::Packed)
      QBITS_WGMMA_TILE(128, 2, WgmmaDecode::Packed)
    }
    if constexpr (!kAffine) QBITS_WGMMA_TILE(128, 2, WgmmaDecode::Sums)
    QBITS_WGMMA_TILE(64, 2, WgmmaDecode::Sums)
    QBITS_WGMMA_TILE(32, 2, WgmmaDecode::Sums)
    QBITS_WGMMA_TILE(16, 2, WgmmaDecode::Sums)
    if constexpr (!kGrouped) {
      QBITS_WGMMA_TILE(32, 3, WgmmaDecode::Sums)
      QBITS_WGMMA_TILE(32, 1, WgmmaDecode::Sums)
      QBITS_WGMMA_TILE(64, 1, WgmmaDecode::Sums)
      QBITS_WGMMA_TILE(16, 3, WgmmaDecode::Sums)
      QBITS_WGMMA_TILE(16, 1, WgmmaDecode::Sums)
    }
  }
#undef QBITS_WGMMA_TILE
  throw Error(ErrorCode::Unsupported, "[linear_4bit] wgmma tile: got " + std::to_string(plan.columns) + " columns, " +
                                          std::to_string(plan.groups) + " groups, want one of the plan's");
}

}  // namespace qbits::cuda
