#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

// The instructions of sm_80 that the tensor-core kernels of linear_4bit are made of. Below sm_80, where no plan
// chooses those kernels, they compile to nothing.

namespace qbits::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
inline constexpr bool kHasMma = true;
#else
inline constexpr bool kHasMma = false;
#endif

__device__ inline uint8_t* dynamic_shared() {
  extern __shared__ __align__(1024) uint8_t memory[];
  return memory;
}

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// Copies 16 bytes to shared memory behind the thread's back, or writes zeros and reads nothing where `valid` is false.
__device__ inline void copy_async(uint32_t shared, const void* global, bool valid) {
  if constexpr (kHasMma) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0)
                 : "memory");
  }
}

__device__ inline void copy_async(void* shared, const void* global, bool valid) {
  copy_async(shared_address(shared), global, valid);
}

__device__ inline void copy_async_commit() {
  if constexpr (kHasMma) asm volatile("cp.async.commit_group;\n" ::: "memory");
}

template <int kPending>
__device__ void copy_async_wait_for() {
  if constexpr (kHasMma) asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
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

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
inline constexpr bool kHasClusters = true;
#else
inline constexpr bool kHasClusters = false;
#endif

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

__device__ inline void mbarrier_arrive(uint64_t* barrier) {
  if constexpr (kHasClusters) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];\n" ::"r"(shared_address(barrier)) : "memory");
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

// True in one lane of the warp, always the same.
__device__ inline bool elect_one() {
  uint32_t elected = 0;
  if constexpr (kHasClusters) {
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}\n" : "=r"(elected));
  }
  return elected != 0;
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

// Barrier `id` (1 to 15) of `threads` threads, whole warps.
__device__ inline void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
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

// Brings what lies in whole 16-byte words of a range into the L2 cache: a hint that reads nothing by itself.
__device__ inline void prefetch_bulk(const void* from, int64_t bytes) {
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(from) + 15) / 16 * 16;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(from) + bytes) / 16 * 16;
  if constexpr (kHasClusters) {
    if (begin < end) {
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;\n" ::"l"(begin), "r"(static_cast<uint32_t>(end - begin))
                   : "memory");
    }
  }
}

// The two halves of a barrier of all threads of the cluster; it orders no memory.
__device__ inline void cluster_arrive() {
  if constexpr (kHasClusters) asm volatile("barrier.cluster.arrive.relaxed.aligned;\n" ::: "memory");
}

__device__ inline void cluster_wait() {
  if constexpr (kHasClusters) asm volatile("barrier.cluster.wait.aligned;\n" ::: "memory");
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

// Programmatic dependent launch: what a kernel does before the wait may overlap the end of the kernels before it in the
// stream, whatever they write must not be read there.
__device__ inline void wait_for_kernels_before() {
  if constexpr (kHasClusters) asm volatile("griddepcontrol.wait;\n" ::: "memory");
}

// Lets the next kernel of the stream start as blocks of this one end.
__device__ inline void let_next_kernel_start() {
  if constexpr (kHasClusters) asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
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

// d += a b for a 16 x 16 row-major a and a 16 x 8 column-major b, fragments as the PTX manual lays them out
// (section "Matrix fragments for mma.m16n8k16").
template <class T>
__device__ void mma_16x8x16(float (&d)[4], const uint32_t* a, uint32_t b0, uint32_t b1) {
  if constexpr (kHasMma && std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else if constexpr (kHasMma) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
template <bool kTransposed>
__device__ void load_matrices(uint32_t (&r)[4], const void* row) {
  if constexpr (kHasMma && kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  } else if constexpr (kHasMma) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  }
}

}  // namespace qbits::cuda
