#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/linear_4bit_ptx.cuh"

// The instructions of sm_90a that the wgmma kernels are made of: mbarriers, bulk copies of tensors and others,
// fences for them. For other targets, where no plan chooses those kernels, they compile to nothing.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define QBITS_WGMMA_ASM(...) asm volatile(__VA_ARGS__)
#else
#define QBITS_WGMMA_ASM(...) static_cast<void>(0)
#endif

namespace qbits::cuda {

// Shared memory is addressed by 32-bit offsets in the block's window throughout.
__device__ inline void barrier_init(uint32_t barrier, int arrivals) {
  QBITS_WGMMA_ASM("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ inline void barrier_init_fence() { QBITS_WGMMA_ASM("fence.mbarrier_init.release.cluster;\n" :: : "memory"); }

__device__ inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  QBITS_WGMMA_ASM(
      "{\n.reg .pred done;\nwait:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\nbra wait;\nfinished:\n}\n" ::"r"(barrier),
      "r"(parity) : "memory");
}

__device__ inline void barrier_arrive(uint32_t barrier) {
  QBITS_WGMMA_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

__device__ inline void barrier_arrive_expecting(uint32_t barrier, uint32_t bytes) {
  QBITS_WGMMA_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}

// The same offset in another block of the cluster.
__device__ inline uint32_t cluster_address(uint32_t address, uint32_t rank) {
  uint32_t result = address;
  QBITS_WGMMA_ASM("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(result) : "r"(address), "r"(rank));
  return result;
}

// At a barrier of any block of the cluster, by its cluster_address.
__device__ inline void barrier_arrive_cluster(uint32_t barrier) {
  QBITS_WGMMA_ASM("mbarrier.arrive.shared::cluster.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

__device__ inline float4 load_cluster(uint32_t address, uint32_t rank) {
  float4 v{};
  QBITS_WGMMA_ASM("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];\n" : "=f"(v.x), "=f"(v.y), "=f"(v.z),
                  "=f"(v.w) : "r"(cluster_address(address, rank)) : "memory");
  return v;
}

__device__ inline void cluster_sync() {
  QBITS_WGMMA_ASM("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" :: : "memory");
}

template <int kRegisters>
__device__ void take_registers() {
  QBITS_WGMMA_ASM("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ void leave_registers() {
  QBITS_WGMMA_ASM("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kRegisters));
}

__device__ inline void prefetch_map(const CUtensorMap* map) {
  QBITS_WGMMA_ASM("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}

// Copies the box at (column, row) of the map's matrix; elements outside come out as 0.
__device__ inline void copy_box(uint32_t shared, const CUtensorMap* map, int column, int row, uint32_t barrier,
                                uint64_t policy = kEvictNormal) {
  QBITS_WGMMA_ASM(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], "
      "[%1, {%3, %4}], [%2], %5;\n" ::"r"(shared),
      "l"(map), "r"(barrier), "r"(column), "r"(row), "l"(policy) : "memory");
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

// Of what this thread has written to shared memory, before bulk copies read it.
__device__ inline void shared_write_fence() { QBITS_WGMMA_ASM("fence.proxy.async.shared::cta;\n" :: : "memory"); }

// Orders a thread's writes to global memory before the bulk copies that follow what it releases.
__device__ inline void fence_copies() { QBITS_WGMMA_ASM("fence.proxy.async.global;\n" :: : "memory"); }

// Brings the box into the L2.
__device__ inline void prefetch_box(const CUtensorMap* map, int column, int row) {
  QBITS_WGMMA_ASM("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];\n" ::"l"(map), "r"(column),
                  "r"(row) : "memory");
}

template <class V>
__device__ V load_shared(uint32_t address) {
  V v;
  const void* p = __cvta_shared_to_generic(address);
  v = *static_cast<const V*>(p);
  return v;
}

template <class V>
__device__ void store_shared(uint32_t address, const V& v) {
  *static_cast<V*>(__cvta_shared_to_generic(address)) = v;
}

// Stores four 8 x 8 fragments transposed; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void store_matrices_transposed(uint32_t address, const uint32_t (&r)[4]) {
  QBITS_WGMMA_ASM("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(address), "r"(r[0]),
                  "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}

}  // namespace qbits::cuda
