#pragma once

#include <cstdint>

namespace qbits::cpu {

// A 256-entry code prepared for the search of ops/blockwise.h. The leading bits of q choose a bin; a bin's entry holds
// how many thresholds lie below the bin and the rest of the bits of the one inside it, if there is one.
struct Encoder256 {
  // Bins are sign, exponent and leading mantissa bits of q; smaller magnitudes than 2^-32 share one bin per sign.
  static constexpr int32_t kSmallest = 0x2f800000;  // 2^-32
  static constexpr int kShift = 16;
  static constexpr int32_t kRest = 0xffff;
  static constexpr int32_t kBinsPerSign = ((0x3f800000 - kSmallest) >> kShift) + 1;

  int32_t bins[2 * kBinsPerSign];  // thresholds below << 16 | rest of the threshold inside, kRest if none
  float thresholds[512];           // ascending; infinite from 255 on
  // 0 if an entry decides. Else some bin holds several thresholds or a tiny one, never more than 2^levels - 1, and
  // that many steps of a binary search do.
  int levels;
  uint8_t zero_code;  // of q = 0, also for blocks without a usable scale
};

Encoder256 make_encoder256(const float* code);

}  // namespace qbits::cpu
