#pragma once

#include "cpu/encoder256.h"
#include "cpu/isa.h"
#include "ops/optimizer_rules.h"
#include "ops/optimizer_step.h"

namespace qbits::cpu {

// The 8-bit codes of state1 and state2.
struct StateMap {
  const float* values;
  Encoder256 encoder;
};
struct StateMaps {
  StateMap first;
  StateMap second;
};

// Chunks of the tensor of `record`, numbered from its first one.
struct OptimizerChunks {
  const OptimizerRecord* record;
  const StateMaps* maps;
  int64_t begin;
  int64_t end;
};

}  // namespace qbits::cpu

// The norms of chunks: what LayerScaling needs before the update.
QBITS_PER_ISA(LayerNorms, optimizer_norms_chunk, const OptimizerStepArgs& args, const OptimizerChunks& chunks)

// Updates the chunks; returns the number of elements that were not finite.
QBITS_PER_ISA(int64_t, optimizer_step_chunks, const OptimizerStepArgs& args, const OptimizerChunks& chunks)
