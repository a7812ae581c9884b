#include "cuda/linear_4bit_mma_launch.cuh"

namespace qbits::cuda {

template void launch_linear_4bit_mma<__half, MmaIsa::Sm80, false>(const MmaArgs&, const Linear4bitPlan&, Stream);

}  // namespace qbits::cuda
