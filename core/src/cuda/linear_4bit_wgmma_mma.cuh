#pragma once

#include "cuda/linear_4bit_wgmma_ptx.cuh"

// wgmma.mma_async m64nNk16 with the 64-row operand in registers, one overload for each N. d has N / 2 sums a thread.

namespace qbits::cuda {

__device__ inline void wgmma_fence() { QBITS_WGMMA_ASM("wgmma.fence.sync.aligned;\n" :: : "memory"); }

__device__ inline void wgmma_commit() { QBITS_WGMMA_ASM("wgmma.commit_group.sync.aligned;\n" :: : "memory"); }

template <int kPending>
__device__ void wgmma_wait() {
  QBITS_WGMMA_ASM("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// Ties the sums to this place: the compiler must neither read nor move them across.
template <int kSums>
__device__ void pin(float (&d)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// A tile of rows of 128 bytes, 128-byte swizzle, 1024-byte aligned, as wgmma's K-major operand in shared memory.
// PTX manual, "Matrix descriptor": 8 rows are 1024 bytes apart from the next 8; a step of 16 elements adds 2.
__device__ inline uint64_t tile_descriptor(uint32_t address) {
  return uint64_t{1} << 62 | uint64_t{64} << 32 | uint64_t{1} << 16 | (address & 0x3ffff) >> 4;
}

// Sums as operands of asm; c is "+f" or "+r".
#define QBITS_D8(c, d, i) \
  c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]), c(d[i + 7])
#define QBITS_D16(c, d, i) QBITS_D8(c, d, i), QBITS_D8(c, d, i + 8)
#define QBITS_D32(c, d, i) QBITS_D16(c, d, i), QBITS_D16(c, d, i + 16)
#define QBITS_D64(c, d, i) QBITS_D32(c, d, i), QBITS_D32(c, d, i + 32)
#define QBITS_D128(c, d, i) QBITS_D64(c, d, i), QBITS_D64(c, d, i + 64)
#define QBITS_OPERANDS_16(c, d) QBITS_D8(c, d, 0)
#define QBITS_OPERANDS_32(c, d) QBITS_D16(c, d, 0)
#define QBITS_OPERANDS_64(c, d) QBITS_D32(c, d, 0)
#define QBITS_OPERANDS_128(c, d) QBITS_D64(c, d, 0)
#define QBITS_OPERANDS_256(c, d) QBITS_D128(c, d, 0)

#define QBITS_SUMS_16 "%0,%1,%2,%3,%4,%5,%6,%7"
#define QBITS_SUMS_32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define QBITS_SUMS_64                                      \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define QBITS_SUMS_128                                               \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"           \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define QBITS_SUMS_256                                                           \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                       \
  "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"             \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"             \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"             \
  "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"             \
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"             \
  "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

#define QBITS_WGMMA(n, type, sums, a0, a1, a2, a3, b, keep, operands)                                   \
  QBITS_WGMMA_ASM("{\n.reg .pred p;\nsetp.ne.b32 p, %" keep ", 0;\nwgmma.mma_async.sync.aligned.m64n" n \
                  "k16.f32." type "." type " {" sums "}, {%" a0 ",%" a1 ",%" a2 ",%" a3 "}, %" b        \
                  ", p, 1, 1, 0;\n}\n" : operands : "r"(a[0]),                                          \
                  "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(descriptor), "r"(keep_sums))

#define QBITS_WGMMA_OVERLOAD(n, count, sums, a0, a1, a2, a3, b, keep)                                    \
  template <class T>                                                                                     \
  __device__ void wgmma(float (&d)[count], const uint32_t (&a)[4], uint64_t descriptor, int keep_sums) { \
    if constexpr (std::is_same_v<T, __half>) {                                                           \
      QBITS_WGMMA(#n, "f16", sums, a0, a1, a2, a3, b, keep, QBITS_OPERANDS_##n("+f", d));                \
    } else {                                                                                             \
      QBITS_WGMMA(#n, "bf16", sums, a0, a1, a2, a3, b, keep, QBITS_OPERANDS_##n("+f", d));               \
    }                                                                                                    \
  }

// d = a b + (keep_sums ? d : 0)
QBITS_WGMMA_OVERLOAD(16, 8, QBITS_SUMS_16, "8", "9", "10", "11", "12", "13")
QBITS_WGMMA_OVERLOAD(32, 16, QBITS_SUMS_32, "16", "17", "18", "19", "20", "21")
QBITS_WGMMA_OVERLOAD(64, 32, QBITS_SUMS_64, "32", "33", "34", "35", "36", "37")
QBITS_WGMMA_OVERLOAD(128, 64, QBITS_SUMS_128, "64", "65", "66", "67", "68", "69")
QBITS_WGMMA_OVERLOAD(256, 128, QBITS_SUMS_256, "128", "129", "130", "131", "132", "133")

}  // namespace qbits::cuda
