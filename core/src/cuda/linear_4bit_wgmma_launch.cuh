#pragma once

#include "cuda/linear_4bit_wgmma_kernel.cuh"

namespace qbits::cuda {

// Runs the instantiation of a plan; each has a file of its own.
template <class T, bool kAffine, bool kTransposed, bool kGrouped>
void launch_wgmma_tile(const WgmmaArgs& args, const WgmmaPlan& plan, Stream stream);

#define QBITS_WGMMA_TILES(T, affine, transposed)                                                                    \
  extern template void launch_wgmma_tile<T, affine, transposed, false>(const WgmmaArgs&, const WgmmaPlan&, Stream); \
  extern template void launch_wgmma_tile<T, affine, transposed, true>(const WgmmaArgs&, const WgmmaPlan&, Stream);
QBITS_WGMMA_TILES(__nv_bfloat16, false, false)
QBITS_WGMMA_TILES(__nv_bfloat16, false, true)
QBITS_WGMMA_TILES(__nv_bfloat16, true, false)
QBITS_WGMMA_TILES(__nv_bfloat16, true, true)
QBITS_WGMMA_TILES(__half, false, false)
QBITS_WGMMA_TILES(__half, false, true)
QBITS_WGMMA_TILES(__half, true, false)
QBITS_WGMMA_TILES(__half, true, true)
#undef QBITS_WGMMA_TILES

template <bool kTransposed, bool kGrouped>
void launch_linear_4bit_wgmma(const WgmmaArgs& args, DType dtype, const WgmmaPlan& plan, Stream stream) {
  dispatch_bool(args.weight.affine, [&](auto affine) {
    constexpr bool kAffine = decltype(affine)::value;
    if (dtype == DType::Float16) {
      launch_wgmma_tile<__half, kAffine, kTransposed, kGrouped>(args, plan, stream);
    } else {
      launch_wgmma_tile<__nv_bfloat16, kAffine, kTransposed, kGrouped>(args, plan, stream);
    }
  });
}

}  // namespace qbits::cuda
