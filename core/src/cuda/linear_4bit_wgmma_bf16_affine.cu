#include "cuda/linear_4bit_wgmma_tiles.cuh"

namespace qbits::cuda {

template void launch_wgmma_tile<__nv_bfloat16, true, false, false>(const WgmmaArgs&, const WgmmaPlan&, Stream);

}  // namespace qbits::cuda
