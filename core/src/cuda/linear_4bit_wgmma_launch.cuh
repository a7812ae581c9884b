#pragma once

#include "cuda/linear_4bit_wgmma_kernel.cuh"

namespace qbits::cuda {

// How scaled weights are decoded: fractions of 16 bits are exact for integers, and exact enough for bfloat16.
template <class T, bool kAffine>
inline constexpr WgmmaDecode kWgmmaWeights =
    kAffine || std::is_same_v<T, __nv_bfloat16> ? WgmmaDecode::Weights16 : WgmmaDecode::Weights32;

// Runs the instantiation of a plan; each has a file of its own.
template <class T, bool kAffine, bool kTransposed>
void launch_wgmma_tile(const WgmmaArgs& args, const WgmmaPlan& plan, Stream stream);

#define QBITS_WGMMA_TILES(T)                                                                           \
  extern template void launch_wgmma_tile<T, false, false>(const WgmmaArgs&, const WgmmaPlan&, Stream); \
  extern template void launch_wgmma_tile<T, true, false>(const WgmmaArgs&, const WgmmaPlan&, Stream);  \
  extern template void launch_wgmma_tile<T, false, true>(const WgmmaArgs&, const WgmmaPlan&, Stream);  \
  extern template void launch_wgmma_tile<T, true, true>(const WgmmaArgs&, const WgmmaPlan&, Stream);
QBITS_WGMMA_TILES(__nv_bfloat16)
QBITS_WGMMA_TILES(__half)
#undef QBITS_WGMMA_TILES

template <bool kTransposed>
void launch_linear_4bit_wgmma(const WgmmaArgs& args, DType dtype, const WgmmaPlan& plan, Stream stream) {
  dispatch_bool(args.weight.affine, [&](auto affine) {
    constexpr bool kAffine = decltype(affine)::value;
    if (dtype == DType::Float16) {
      launch_wgmma_tile<__half, kAffine, kTransposed>(args, plan, stream);
    } else {
      launch_wgmma_tile<__nv_bfloat16, kAffine, kTransposed>(args, plan, stream);
    }
  });
}

}  // namespace qbits::cuda
