#include "cuda/linear_int8_fused_launch.cuh"

namespace qbits::cuda {

template void launch_linear_int8_fused<__half>(const Int8FusedArgs<__half>&, bool, const LinearInt8Plan&, Stream);

}  // namespace qbits::cuda
