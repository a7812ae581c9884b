#include "cuda/optimizer_step.cuh"

namespace qbits::cuda {

template void launch_optimizer_norms<LionRule>(const OptimizerWork&, bool, const StateMapValues&, Stream);
template void launch_optimizer_update<LionRule>(const OptimizerWork&, bool, const StateMapValues&, Stream);

}  // namespace qbits::cuda
