#include "cuda/optimizer_step.cuh"

namespace qbits::cuda {

template void launch_optimizer_norms<RMSpropRule>(const OptimizerWork&, bool, const StateMapValues&, Stream);
template void launch_optimizer_update<RMSpropRule>(const OptimizerWork&, bool, const StateMapValues&, Stream);

}  // namespace qbits::cuda
