#pragma once

#include "cuda/linear_4bit_ptx.cuh"

namespace qbits::cuda {

// d += a b modulo 2^32 for a 16 x 32 row-major a and a 32 x 8 column-major b of codes, fragments as the PTX manual lays
// them out (section "Matrix fragments for mma.m16n8k32"): those of four m8n8k16, by halves of rows and of the depth.
template <MmaIsa kIsa>
__device__ void mma_16x8x32(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kIsa == MmaIsa::Sm75) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int32_t* const half = d + i % 2 * 2;
      asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};\n"
          : "+r"(half[0]), "+r"(half[1])
          : "r"(a[i]), "r"(i < 2 ? b0 : b1));
    }
  } else if constexpr (kHasSm80) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

}  // namespace qbits::cuda
