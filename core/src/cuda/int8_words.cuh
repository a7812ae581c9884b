#pragma once

#include <cstdint>

// Codes that begin at any byte, read by whole words. The word that holds a tensor's first byte may begin before it:
// memory is given out in words at least.

namespace qbits::cuda {

// The aligned word at `from`; bytes from `end` on are 0 and not read.
__device__ inline uint32_t load_word_before(const int8_t* from, const int8_t* end) {
  if (end - from >= 4) return __ldg(reinterpret_cast<const uint32_t*>(from));
  uint32_t word = 0;
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    if (from + i < end) word |= uint32_t{static_cast<uint8_t>(from[i])} << i * 8;
  }
  return word;
}

// What a run of codes begins behind its first word.
__device__ inline int lead_of(const int8_t* codes) { return static_cast<int>(reinterpret_cast<uintptr_t>(codes) & 3); }

// Four codes.
__device__ inline uint32_t load_codes4(const int8_t* codes, const int8_t* end) {
  const int lead = lead_of(codes);
  const uint32_t low = load_word_before(codes - lead, end);
  return lead == 0 ? low : __funnelshift_r(low, load_word_before(codes - lead + 4, end), lead * 8);
}

// Sixteen, as loaded, which are put in place when they have come.
struct RawCodes16 {
  uint32_t words[5] = {};

  __device__ void load(const int8_t* codes, const int8_t* end) {
    const int lead = lead_of(codes);
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = load_word_before(codes - lead + i * 4, end);
    words[4] = lead == 0 ? 0 : load_word_before(codes - lead + 16, end);
  }
  __device__ uint4 shifted(int lead) const {
    return make_uint4(__funnelshift_r(words[0], words[1], lead * 8), __funnelshift_r(words[1], words[2], lead * 8),
                      __funnelshift_r(words[2], words[3], lead * 8), __funnelshift_r(words[3], words[4], lead * 8));
  }
};

}  // namespace qbits::cuda
