#include "cuda/linear_int8_mma_launch.cuh"

namespace qbits::cuda {

template void launch_linear_int8_mma<__half, MmaIsa::Sm75>(const LinearInt8MmaArgs&, bool, const Int8MmaPlan&, Stream);

}  // namespace qbits::cuda
