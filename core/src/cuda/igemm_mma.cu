#include "cuda/igemm_mma.cuh"

namespace qbits::cuda {

template void launch_igemm_mma<MmaIsa::Sm80>(const IgemmMmaArgs&, const Int8MmaPlan&, Stream);

}  // namespace qbits::cuda
