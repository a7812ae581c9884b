#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/absmax.h"

namespace qbits::cpu {

// absmax of block `i`, plain or double-quantized: one rounded product, one rounded sum (this file is
// included only where -ffp-contract=off holds).
static inline float absmax_at(const AbsmaxArgs& absmax, int64_t i) {
  if (!absmax.is_nested()) return static_cast<const float*>(absmax.values)[i];
  const uint8_t code = static_cast<const uint8_t*>(absmax.values)[i];
  const float product = absmax.nested_code[code] * absmax.nested_absmax[i / kNestedBlockSize];
  return product + *absmax.offset;
}

// Scales of blocks [begin, end): the stored ones, or reconstructed into `buffer` (end - begin floats).
static inline const float* absmax_run(const AbsmaxArgs& absmax, int64_t begin, int64_t end, float* buffer) {
  if (!absmax.is_nested()) return static_cast<const float*>(absmax.values) + begin;
  for (int64_t i = begin; i < end; ++i) buffer[i - begin] = absmax_at(absmax, i);
  return buffer;
}

}  // namespace qbits::cpu
