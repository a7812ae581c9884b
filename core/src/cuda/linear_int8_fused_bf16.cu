#include "cuda/linear_int8_fused_launch.cuh"

namespace qbits::cuda {

template void launch_linear_int8_fused<__nv_bfloat16>(const Int8FusedArgs<__nv_bfloat16>&, bool, const LinearInt8Plan&,
                                                      Stream);

}  // namespace qbits::cuda
