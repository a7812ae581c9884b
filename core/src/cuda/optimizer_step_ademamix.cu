#include "cuda/optimizer_step.cuh"

namespace qbits::cuda {

template void launch_optimizer_norms<AdEMAMixRule>(const OptimizerWork&, bool, const StateMapValues&, Stream);
template void launch_optimizer_update<AdEMAMixRule>(const OptimizerWork&, bool, const StateMapValues&, Stream);

}  // namespace qbits::cuda
