#include "cuda/linear_int8_wgmma_launch.cuh"

namespace qbits::cuda {

template void launch_linear_int8_wgmma<__nv_bfloat16>(const Int8WgmmaArgs&, const LinearInt8Plan&, Stream);

}  // namespace qbits::cuda
