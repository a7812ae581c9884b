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
  double* norms;  // |p|^2 and |u|^2 of each chunk; null without layer scaling
  bool stochastic_rounding;
};

// Updates parameters and state of the chunks, whose state has 8 bits or 32. One file for each rule.
template <class Rule>
void launch_optimizer_update(const OptimizerWork& work, bool is_8bit, const StateMapValues& maps, Stream stream);

}  // namespace qbits::cuda
