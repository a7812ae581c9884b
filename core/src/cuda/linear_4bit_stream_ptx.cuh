#pragma once

#include "cuda/linear_4bit_ptx.cuh"

// The instructions of sm_90 that the Stream kernel of linear_4bit is made of. Below, where no plan chooses it, they
// compile to nothing.

namespace qbits::cuda {

// Barriers in shared memory (PTX manual, "mbarrier"): a phase ends when `count` arrivals, and the bytes they announced,
// have come. They and the bulk copies need sm_90.
__device__ inline void mbarrier_init(uint64_t* barrier, int count) {
  if constexpr (kHasClusters) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(count) : "memory");
  }
}

// Makes initialized barriers visible to bulk copies and, across a cluster, to other blocks.
__device__ inline void mbarrier_init_fence() {
  if constexpr (kHasClusters) asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

template <int kCount = 1>
__device__ void mbarrier_arrive(uint64_t* barrier) {
  if constexpr (kHasClusters) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)), "n"(kCount) : "memory");
  }
}

// Arrives once the calling thread's asynchronous copies so far have come.
__device__ inline void mbarrier_arrive_copied(uint64_t* barrier) {
  if constexpr (kHasClusters) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];\n" ::"r"(shared_address(barrier)) : "memory");
  }
}

// Arrives and announces `bytes` of bulk copies.
__device__ inline void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
  if constexpr (kHasClusters) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;\n" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
  }
}

// Waits for the end of the phase with this parity: 0 for the first, 1 for the second, ...
__device__ inline void mbarrier_wait(uint64_t* barrier, int parity) {
  if constexpr (kHasClusters) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra again;\n}\n" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
  }
}

// Of the block's cluster; without clusters a block is one.
__device__ inline int cluster_index() {
  int index = 0;
  if constexpr (kHasClusters) asm("mov.u32 %0, %%clusterid.x;\n" : "=r"(index));
  return index;
}

__device__ inline int cluster_count() {
  int count = 0;
  if constexpr (kHasClusters) asm("mov.u32 %0, %%nclusterid.x;\n" : "=r"(count));
  return count;
}

// Copies `bytes`, a multiple of 16 between aligned addresses, and counts them in the barrier.
__device__ inline void copy_bulk(void* shared, const void* global, int bytes, uint64_t* barrier) {
  if constexpr (kHasClusters) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
  }
}

// Hand registers of a warpgroup to others of the block, and take them.
#if !defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kSharesRegisters = false;
#else
inline constexpr bool kSharesRegisters = true;
#endif

template <int kCount>
__device__ void give_registers() {
  if constexpr (kSharesRegisters) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kCount));
}

template <int kCount>
__device__ void take_registers() {
  if constexpr (kSharesRegisters) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kCount));
}

// Writes to where `shared` points in the shared memory of block `rank` of the cluster, and counts the 16 bytes in the
// barrier of that block.
__device__ inline void store_in_cluster(float4* shared, uint64_t* barrier, int rank, float4 value) {
  if constexpr (kHasClusters) {
    asm volatile(
        "{\n.reg .b32 to, counter;\nmapa.shared::cluster.u32 to, %0, %2;\nmapa.shared::cluster.u32 counter, %1, %2;\n"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [to], {%3, %4, %5, %6}, [counter];\n}\n" ::
            "r"(shared_address(shared)),
        "r"(shared_address(barrier)), "r"(rank), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
        : "memory");
  }
}

}  // namespace qbits::cuda
