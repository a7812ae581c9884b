#include "cuda/linear_4bit_wgmma_tiles.cuh"

namespace qbits::cuda {

template void launch_wgmma_tile<__half, true, true, false>(const WgmmaArgs&, const WgmmaPlan&, Stream);

}  // namespace qbits::cuda
