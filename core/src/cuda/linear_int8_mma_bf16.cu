#include "cuda/linear_int8_mma_launch.cuh"

namespace qbits::cuda {

template void launch_linear_int8_mma<__nv_bfloat16, MmaIsa::Sm80>(const LinearInt8MmaArgs&, bool, const Int8MmaPlan&,
                                                                  Stream);

}  // namespace qbits::cuda
