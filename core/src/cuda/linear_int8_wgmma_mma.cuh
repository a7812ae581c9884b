#pragma once

#include "cuda/linear_4bit_wgmma_mma.cuh"

// wgmma.mma_async m64nNk32 of int8, both operands in shared memory, one overload for each N. d has N / 2 sums a thread.

namespace qbits::cuda {

#define QBITS_WGMMA_INT8_OVERLOAD(n, count, sums, a, b)                                            \
  __device__ inline void wgmma_int8(int32_t (&d)[count], uint64_t a_tile, uint64_t b_tile) {       \
    QBITS_WGMMA_ASM("wgmma.mma_async.sync.aligned.m64n" #n "k32.s32.s8.s8 {" sums "}, %" a ", %" b \
                    ", 1;\n" : QBITS_OPERANDS_##n("+r", d) : "l"(a_tile),                          \
                    "l"(b_tile));                                                                  \
  }

// d += a b
QBITS_WGMMA_INT8_OVERLOAD(16, 8, QBITS_SUMS_16, "8", "9")
QBITS_WGMMA_INT8_OVERLOAD(32, 16, QBITS_SUMS_32, "16", "17")
QBITS_WGMMA_INT8_OVERLOAD(64, 32, QBITS_SUMS_64, "32", "33")
QBITS_WGMMA_INT8_OVERLOAD(128, 64, QBITS_SUMS_128, "64", "65")
QBITS_WGMMA_INT8_OVERLOAD(256, 128, QBITS_SUMS_256, "128", "129")
#undef QBITS_WGMMA_INT8_OVERLOAD

// Ties the sums to this place, as `pin`.
template <int kSums>
__device__ void pin_int8(int32_t (&d)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

// Copies a word from global memory, in time.
__device__ inline void copy_word(uint32_t shared, const void* global) {
  QBITS_WGMMA_ASM("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(shared), "l"(global) : "memory");
}

// Arrives once the thread's copies so far are there.
__device__ inline void copies_arrive(uint32_t barrier) {
  QBITS_WGMMA_ASM("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];\n" ::"r"(barrier) : "memory");
}

// Stores to an address of the cluster's shared memory.
__device__ inline void store_cluster(uint32_t address, uint16_t value) {
  QBITS_WGMMA_ASM("st.shared::cluster.u16 [%0], %1;\n" ::"r"(address), "h"(value) : "memory");
}

// A word at the same offset in another block of the cluster.
__device__ inline uint32_t load_cluster_word(uint32_t address, uint32_t rank) {
  uint32_t v = 0;
  QBITS_WGMMA_ASM("ld.shared::cluster.u32 %0, [%1];\n" : "=r"(v) : "r"(cluster_address(address, rank)) : "memory");
  return v;
}

// Makes what this thread wrote to shared memory visible to wgmma.
__device__ inline void fence_shared() { QBITS_WGMMA_ASM("fence.proxy.async.shared::cta;\n" :: : "memory"); }

}  // namespace qbits::cuda
