#include "cuda/linear_4bit_ahead_tiles.cuh"

namespace qbits::cuda {

template void launch_ahead_tile<__half, false, true>(const AheadArgs&, const AheadPlan&, Stream);

}  // namespace qbits::cuda
