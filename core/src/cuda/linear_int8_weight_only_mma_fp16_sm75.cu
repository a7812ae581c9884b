#include "cuda/linear_int8_weight_only_mma_launch.cuh"

namespace qbits::cuda {

template void launch_linear_int8_weight_only<__half, MmaIsa::Sm75>(const LinearInt8WeightOnlyArgs&,
                                                                   const LinearInt8WeightOnlyPlan&, Stream);

}  // namespace qbits::cuda
