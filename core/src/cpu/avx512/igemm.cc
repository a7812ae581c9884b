#include "cpu/igemm_kernel.h"

namespace qbits::cpu::avx512 {

// VNNI's instruction takes one factor with a sign as it is; the other products would take -128 for 128.
void igemm_products(const Int8W& w, const Int8X& x, const Int8Tile& tile, int64_t* c) {
  __builtin_cpu_supports("avx512vnni") ? avx512vnni::linear_int8_products(w, x, tile, c)
                                       : avx2::igemm_products(w, x, tile, c);
}

}  // namespace qbits::cpu::avx512
