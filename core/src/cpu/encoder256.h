#pragma once

#include <cstdint>

namespace qbits::cpu {

// A 256-entry code prepared for the search of ops/blockwise.h: the leading bits of q choose a bin, `start` says how
// many thresholds lie below the bin, and `levels` steps of a binary search among the few inside it decide.
struct Encoder256 {
  // Bins are sign, exponent and leading mantissa bits of q; smaller magnitudes than 2^-32 share one bin per sign.
  static constexpr int32_t kSmallest = 0x2f800000;  // 2^-32
  static constexpr int kShift = 16;
  static constexpr int32_t kBinsPerSign = ((0x3f800000 - kSmallest) >> kShift) + 1;

  float thresholds[512];                // ascending; infinite from 255 on
  uint8_t start[2 * kBinsPerSign + 4];  // read four bytes at a time
  int levels;                           // 2^levels - 1 is at least the number of thresholds in any bin
  uint8_t zero_code;                    // of q = 0, also for blocks without a usable scale
};

// The bin of a quotient, between 0 and 2 * kBinsPerSign - 1, rising with q. The same for vectors is in encode256.inl.h.
int32_t bin_of(float q);

Encoder256 make_encoder256(const float* code);

}  // namespace qbits::cpu
