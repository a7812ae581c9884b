#include "cpu/igemm_kernel.h"

namespace qbits::cpu::scalar {

void igemm_products(const Int8W& w, const Int8X& x, const Int8Tile& tile, int64_t* c) {
  linear_int8_products(w, x, tile, c);
}

}  // namespace qbits::cpu::scalar
