#pragma once

#include "cuda/linear_4bit_wgmma_mma.cuh"

// What the kernel that dequantizes ahead needs besides: wgmma with both operands in shared memory, counters in global
// memory, and copies of what other threads have written there.

namespace qbits::cuda {

__device__ inline void barrier_arrive_cluster(uint32_t barrier, uint32_t rank) {
  QBITS_WGMMA_ASM("mbarrier.arrive.shared::cluster.b64 _, [%0];\n" ::"r"(cluster_address(barrier, rank)) : "memory");
}

// As copy_box, to the same offsets, data and barrier, in every block of the cluster whose bit is set.
__device__ inline void copy_box_multicast(uint32_t shared, const CUtensorMap* map, int column, int row,
                                          uint32_t barrier, uint16_t blocks) {
  QBITS_WGMMA_ASM(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%3, %4}], [%2], %5;\n" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "h"(blocks) : "memory");
}

__device__ inline void copy_bulk(uint32_t shared, const void* global, int bytes, uint32_t barrier) {
  QBITS_WGMMA_ASM(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(shared),
      "l"(global), "r"(bytes), "r"(barrier) : "memory");
}

__device__ inline int load_acquire(const int* p) {
  int v = 0;
  QBITS_WGMMA_ASM("ld.acquire.gpu.global.b32 %0, [%1];\n" : "=r"(v) : "l"(p) : "memory");
  return v;
}

__device__ inline int load_relaxed(const int* p) {
  int v = 0;
  QBITS_WGMMA_ASM("ld.relaxed.gpu.global.b32 %0, [%1];\n" : "=r"(v) : "l"(p) : "memory");
  return v;
}

__device__ inline void store_relaxed(int* p, int v) {
  QBITS_WGMMA_ASM("st.relaxed.gpu.global.b32 [%0], %1;\n" ::"l"(p), "r"(v) : "memory");
}

__device__ inline void add_release(int* p, int v) {
  QBITS_WGMMA_ASM("red.release.gpu.global.add.s32 [%0], %1;\n" ::"l"(p), "r"(v) : "memory");
}

// A word of shared memory that one warp writes for others of the block.
__device__ inline int load_shared_acquire(uint32_t address) {
  int v = 0;
  QBITS_WGMMA_ASM("ld.acquire.cta.shared::cta.b32 %0, [%1];\n" : "=r"(v) : "r"(address) : "memory");
  return v;
}

__device__ inline void store_shared_release(uint32_t address, int v) {
  QBITS_WGMMA_ASM("st.release.cta.shared::cta.b32 [%0], %1;\n" ::"r"(address), "r"(v) : "memory");
}

// A word, half word or byte that nothing writes meanwhile, or 0.
template <int kBytes>
__device__ uint32_t load_if(const void* p, bool valid) {
  uint32_t v = 0;
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define QBITS_LOAD_IF(type)                                                                            \
  asm("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\nmov.b32 %0, 0;\n@p ld.global.nc.L1::no_allocate." type \
      " %0, [%1];\n}\n"                                                                                \
      : "=r"(v)                                                                                        \
      : "l"(p), "r"(valid ? 1 : 0))
  if constexpr (kBytes == 4) {
    QBITS_LOAD_IF("b32");
  } else if constexpr (kBytes == 2) {
    QBITS_LOAD_IF("u16");
  } else {
    QBITS_LOAD_IF("u8");
  }
#undef QBITS_LOAD_IF
#endif
  return v;
}

// Orders a thread's writes to global memory before the bulk copies that follow what it releases.
__device__ inline void fence_copies() { QBITS_WGMMA_ASM("fence.proxy.async.global;\n" :: : "memory"); }

// A tile of rows of 128 bytes as wgmma's operand whose rows run along the depth: 64 columns, 8 rows 1024 bytes apart
// from the next 8; a step of 16 rows adds 128. Only one block of 64 columns, so its stride is never used.
__device__ inline uint64_t column_descriptor(uint32_t address) {
  return uint64_t{1} << 62 | uint64_t{64} << 32 | uint64_t{64} << 16 | (address & 0x3ffff) >> 4;
}

#define QBITS_WGMMA_SHARED(n, type, sums, a, b, keep, transposed, operands)                             \
  QBITS_WGMMA_ASM("{\n.reg .pred p;\nsetp.ne.b32 p, %" keep ", 0;\nwgmma.mma_async.sync.aligned.m64n" n \
                  "k16.f32." type "." type " {" sums "}, %" a ", %" b ", p, 1, 1, %" transposed         \
                  ", 0;\n}\n" : operands : "l"(first),                                                  \
                  "l"(second), "r"(keep_sums), "n"(kTransposed ? 1 : 0))

#define QBITS_WGMMA_SHARED_OVERLOAD(n, count, sums, a, b, keep, transposed)                         \
  template <class T, bool kTransposed>                                                              \
  __device__ void wgmma_shared(float (&d)[count], uint64_t first, uint64_t second, int keep_sums) { \
    if constexpr (std::is_same_v<T, __half>) {                                                      \
      QBITS_WGMMA_SHARED(#n, "f16", sums, a, b, keep, transposed, QBITS_OPERANDS_##n("+f", d));     \
    } else {                                                                                        \
      QBITS_WGMMA_SHARED(#n, "bf16", sums, a, b, keep, transposed, QBITS_OPERANDS_##n("+f", d));    \
    }                                                                                               \
  }

// d = first second + (keep_sums ? d : 0). kTransposed: the first operand is a column_descriptor.
QBITS_WGMMA_SHARED_OVERLOAD(128, 64, QBITS_SUMS_128, "64", "65", "66", "67")
QBITS_WGMMA_SHARED_OVERLOAD(256, 128, QBITS_SUMS_256, "128", "129", "130", "131")

}  // namespace qbits::cuda
