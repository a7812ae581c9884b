#include "cuda/linear_4bit_ahead_tiles.cuh"

namespace qbits::cuda {

template void launch_ahead_tile<__nv_bfloat16, true, false>(const AheadArgs&, const AheadPlan&, Stream);

}  // namespace qbits::cuda
