#pragma once

#include "ops/optimizer_step.h"

namespace qbits::cuda {

// The values of the maps of 8-bit state, as a kernel takes them.
struct StateMapValues {
  float first[256];
  float second[256];
};

// What update kernels read: records, and the chunks of the tensors among them that a launch is for.
struct OptimizerWork {
  OptimizerRecord* records;
  const int32_t* first_chunks;  // of each record, and the end
  int32_t tensors;
  int32_t begin;
  int32_t end;
  int64_t* skipped;
  LayerNorms* norms;  // of each chunk; null without LayerScaling
  bool stochastic_rounding;
};

// Both are for chunks whose state has 8 bits, or for such of 32. One file instantiates them for each rule.
// Writes the norms of the chunks.
template <class Rule>
void launch_optimizer_norms(const OptimizerWork& work, bool is_8bit, const StateMapValues& maps, Stream stream);

// Updates parameters and state.
template <class Rule>
void launch_optimizer_update(const OptimizerWork& work, bool is_8bit, const StateMapValues& maps, Stream stream);

}  // namespace qbits::cuda
