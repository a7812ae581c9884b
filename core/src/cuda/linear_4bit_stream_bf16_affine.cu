#include "cuda/linear_4bit_stream_launch.cuh"

namespace qbits::cuda {

template void launch_linear_4bit_stream<__nv_bfloat16, true, false>(const StreamArgs&, const Linear4bitPlan&, Stream);

}  // namespace qbits::cuda
