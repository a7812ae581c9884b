#include "cpu/linear_int8_kernel.h"
#include "cpu/simd_avx512.h"

namespace qbits::cpu::avx512 {

void linear_int8_products(const Int8W& w, const Int8X& x, const Int8Tile& tile, int64_t* c) {
  __builtin_cpu_supports("avx512vnni") ? avx512vnni::linear_int8_products(w, x, tile, c)
                                       : avx2::linear_int8_products(w, x, tile, c);
}

#include "cpu/linear_int8.inl.h"
}  // namespace qbits::cpu::avx512
