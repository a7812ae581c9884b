#include "cpu/linear_int8_kernel.h"
#include "cpu/simd_scalar.h"

namespace qbits::cpu::scalar {
namespace {

struct Dot {
  static constexpr int kStep = 1;
  static constexpr int kMicroM = 2;
  using Weights = int32_t;
  using Codes = int32_t;
  using Sums = int32_t;

  static Weights weights(const int8_t* p) { return *p; }
  static Weights weights(const int8_t* p, int) { return *p; }
  static Sums zero() { return 0; }
  static Codes codes(const int8_t* p) { return *p; }
  static Sums add(Sums sums, Weights w, Codes x) { return sums + w * x; }
  static void add_sums4(int64_t* c, Sums s0, Sums s1, Sums s2, Sums s3, int32_t) {
    c[0] += s0;
    c[1] += s1;
    c[2] += s2;
    c[3] += s3;
  }
};

}  // namespace

#include "cpu/linear_int8.inl.h"
#include "cpu/linear_int8_products.inl.h"

void linear_int8_products(const Int8W& w, const Int8X& x, const Int8Tile& tile, int64_t* c) {
  products_tile<Dot>(w, x, tile, c);
}

}  // namespace qbits::cpu::scalar
