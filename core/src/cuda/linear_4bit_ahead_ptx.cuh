#pragma once

#include "cuda/linear_4bit_wgmma_mma.cuh"

// What the kernel that dequantizes ahead needs besides: wgmma with both operands in shared memory, counters in global
// memory, copies of what other threads have written there, and bulk stores.

namespace qbits::cuda {

// Writes the box at (column, row) of the map's matrix from shared memory, but for elements outside; a group of its own.
__device__ inline void store_box(const CUtensorMap* map, int column, int row, uint32_t shared) {
  QBITS_WGMMA_ASM(
      "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];\n"
      "cp.async.bulk.commit_group;\n" ::"l"(map),
      "r"(shared), "r"(column), "r"(row) : "memory");
}

// Shared memory of all boxes that this thread writes is read.
__device__ inline void wait_for_stored_boxes() { QBITS_WGMMA_ASM("cp.async.bulk.wait_group.read 0;\n" :: : "memory"); }

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
