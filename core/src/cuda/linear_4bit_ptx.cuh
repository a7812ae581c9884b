#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/float_types.cuh"
#include "ops/linear_4bit_plan.h"

// The instructions that the tensor-core kernels of linear_4bit are made of. Those of sm_80 compile to nothing below
// it, where no plan chooses kernels with MmaIsa::Sm80.

namespace qbits::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
inline constexpr bool kHasSm80 = true;
#else
inline constexpr bool kHasSm80 = false;
#endif

__device__ inline uint8_t* dynamic_shared() {
  extern __shared__ __align__(1024) uint8_t memory[];
  return memory;
}

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Copies 16 bytes to shared memory behind the thread's back, or writes zeros where `valid` is false.
__device__ inline void copy_async(void* shared, const void* global, bool valid) {
  if constexpr (kHasSm80) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
  }
}

__device__ inline void copy_async_commit() {
  if constexpr (kHasSm80) asm volatile("cp.async.commit_group;\n" ::: "memory");
}

template <int kPending>
__device__ void copy_async_wait_for() {
  if constexpr (kHasSm80) asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Waits until at most `pending` (0 to 4) of the groups committed last are under way.
__device__ inline void copy_async_wait(int pending) {
  switch (pending) {
    case 0:
      return copy_async_wait_for<0>();
    case 1:
      return copy_async_wait_for<1>();
    case 2:
      return copy_async_wait_for<2>();
    case 3:
      return copy_async_wait_for<3>();
    default:
      return copy_async_wait_for<4>();
  }
}

// Two floats rounded to T, the first in the low half.
template <class T>
__device__ uint32_t pack(float first, float second) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(first, second);
    return reinterpret_cast<const uint32_t&>(pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return reinterpret_cast<const uint32_t&>(pair);
  }
}

// from_float of two floats, the first in the low half.
template <class T>
__device__ uint32_t round_pair(float first, float second) {
  // The hardware's NaN is 0x7fff, as a signed number the greatest.
  return __vmins2(pack<T>(first, second), kNanWord<T>);
}

__device__ inline void mma_16x8x8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
}

// d += a b for a 16 x 16 row-major a and a 16 x 8 column-major b, fragments as the PTX manual lays them out
// (section "Matrix fragments for mma.m16n8k16"): those of two m16n8k8, one after the other.
template <class T, MmaIsa kIsa = MmaIsa::Sm80>
__device__ void mma_16x8x16(float (&d)[4], const uint32_t* a, uint32_t b0, uint32_t b1) {
  if constexpr (kIsa == MmaIsa::Sm75) {
    static_assert(std::is_same_v<T, __half>);
    mma_16x8x8(d, a[0], a[1], b0);
    mma_16x8x8(d, a[2], a[3], b1);
  } else if constexpr (kHasSm80 && std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else if constexpr (kHasSm80) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// d += a b for a 16 x 4 row-major a and a 4 x 8 column-major b of float32 numbers of which 11 bits of the significand
// count (tf32).
__device__ inline void mma_16x8x4_tf32(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  if constexpr (kHasSm80) {
    asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b));
  }
}

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
template <bool kTransposed>
__device__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
inline constexpr bool kHasClusters = true;
#else
inline constexpr bool kHasClusters = false;
#endif

// Barrier `id` (0 to 15; __syncthreads is 0) of `threads` threads of the block, whole warps.
__device__ inline void group_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// Counts these in without waiting.
__device__ inline void group_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// True in one lane of the warp, always the same.
__device__ inline bool elect_one() {
  uint32_t elected = 0;
  if constexpr (kHasClusters) {
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}\n" : "=r"(elected));
  }
  return elected != 0;
}

// Programmatic dependent launch: what a kernel does before the wait may overlap the end of the kernels before it in the
// stream, whatever they write must not be read there.
__device__ inline void wait_for_kernels_before() {
  if constexpr (kHasClusters) asm volatile("griddepcontrol.wait;\n" ::: "memory");
}

// For a kernel that reads before that wait (EarlyReads), before all but loads that pass by the L1: what the L1 holds
// may be older than what kernels before have written.
__device__ inline void drop_l1() { asm volatile("fence.acq_rel.gpu;\n" ::: "memory"); }

// Of the block in its cluster.
__device__ inline uint32_t cluster_rank() {
  uint32_t rank = 0;
  if constexpr (kHasClusters) asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}

// The two halves of a barrier of all threads of the cluster; it orders no memory.
__device__ inline void cluster_arrive() {
  if constexpr (kHasClusters) asm volatile("barrier.cluster.arrive.relaxed.aligned;\n" ::: "memory");
}

__device__ inline void cluster_wait() {
  if constexpr (kHasClusters) asm volatile("barrier.cluster.wait.aligned;\n" ::: "memory");
}

// What the L2 shall do with a line: as createpolicy.fractional gives them.
inline constexpr uint64_t kEvictNormal = 0x1000000000000000;
inline constexpr uint64_t kEvictFirst = 0x12f0000000000000;

__device__ inline void prefetch_to_l2(const void* global) { asm volatile("prefetch.global.L2 [%0];\n" ::"l"(global)); }

// Lets the next kernel of the stream start as blocks of this one end.
__device__ inline void let_next_kernel_start() {
  if constexpr (kHasClusters) asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
}

}  // namespace qbits::cuda
