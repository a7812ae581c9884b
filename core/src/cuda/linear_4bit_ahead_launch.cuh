#pragma once

#include "cuda/linear_4bit_ahead_parts.cuh"

namespace qbits::cuda {

// Runs the instantiation of a plan; each has a file of its own.
template <class T, bool kAffine, bool kTransposed>
void launch_ahead_tile(const AheadArgs& args, const AheadPlan& plan, Stream stream);

#define QBITS_AHEAD_TILES(T)                                                                           \
  extern template void launch_ahead_tile<T, false, false>(const AheadArgs&, const AheadPlan&, Stream); \
  extern template void launch_ahead_tile<T, true, false>(const AheadArgs&, const AheadPlan&, Stream);  \
  extern template void launch_ahead_tile<T, false, true>(const AheadArgs&, const AheadPlan&, Stream);  \
  extern template void launch_ahead_tile<T, true, true>(const AheadArgs&, const AheadPlan&, Stream);
QBITS_AHEAD_TILES(__nv_bfloat16)
QBITS_AHEAD_TILES(__half)
#undef QBITS_AHEAD_TILES

}  // namespace qbits::cuda
