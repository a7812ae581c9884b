#pragma once

#include <cstdint>

#include "cuda/linear_4bit_codebook.cuh"
#include "cuda/linear_4bit_ptx.cuh"
#include "ops/linear_4bit_plan.h"

// The table of the value pairs of all bytes of codes, at a fixed place in a block's window of shared memory: one byte
// permutation then turns a byte into the address of its pair, and the lookup adds a constant.

namespace qbits::cuda {

// Where dynamic shared memory begins in the window, behind what the system keeps. Kernels check it.
inline constexpr uint32_t kSharedBase = 1024;

inline constexpr int kTableLine = Linear4bitTable::kLine;
inline constexpr int kTablePitch = Linear4bitTable::kPitch;

// Value pairs of the 256 bytes, the high nibble first, for 32 lanes: no two lanes share a bank. By whole warps, of
// `threads` threads, at the beginning of dynamic shared memory.
__device__ inline void fill_table(const uint32_t (&values)[16], int thread, int threads) {
  const uint32_t own = values[thread % 16];
  for (int byte = thread; byte < 256; byte += threads) {
    const uint4 pairs = lane_pairs(__shfl_sync(~0U, own, byte >> 4), __shfl_sync(~0U, own, byte & 15));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      *reinterpret_cast<uint4*>(dynamic_shared() + byte * kTablePitch + ((i + byte) & 7) * 16) = pairs;
    }
  }
}

// The window's address with the lane's bank: look_up's offset but for the byte, which comes to bits 8 to 15.
__device__ inline uint32_t lane_of_table(uint32_t window, int lane) { return window | static_cast<uint32_t>(lane) * 4; }

// The selector of __byte_perm(word, lane_of_table, selector) for byte `i` of the word.
__device__ constexpr uint32_t byte_of_table(int i) { return 0x7604U | static_cast<uint32_t>(i) << 4; }

// What the table at `kTable` in the window says of a byte.
template <uint32_t kTable>
__device__ uint32_t look_up(uint32_t offset) {
  uint32_t pair = 0;
  asm("ld.shared.b32 %0, [%1+%2];\n" : "=r"(pair) : "r"(offset), "n"(kTable));
  return pair;
}

}  // namespace qbits::cuda
