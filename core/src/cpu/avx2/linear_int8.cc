#include "cpu/linear_int8_kernel.h"
#include "cpu/simd_avx2.h"

namespace qbits::cpu::avx2 {
namespace {

struct Dot {
  static constexpr int kStep = 32;
  static constexpr int kMicroM = 2;
  struct Weights {
    __m256i codes, magnitudes;
  };
  using Codes = __m256i;
  using Sums = __m256i;

  static Weights of(__m256i codes) { return {codes, _mm256_abs_epi8(codes)}; }
  static Weights weights(const int8_t* p) { return of(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
  static Weights weights(const int8_t* p, int count) {
    alignas(32) int8_t rest[kStep] = {};
    for (int i = 0; i < count; ++i) rest[i] = p[i];
    return weights(rest);
  }
  static Sums zero() { return _mm256_setzero_si256(); }
  static Codes codes(const int8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  // |w| times x with the sign of w. Two products fit 16 bits, |w| being at most 128 and |x| at most 127.
  static Sums add(Sums sums, const Weights& w, Codes x) {
    const __m256i pairs = _mm256_maddubs_epi16(w.magnitudes, _mm256_sign_epi8(x, w.codes));
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static void add_sums4(int64_t* c, Sums s0, Sums s1, Sums s2, Sums s3, int32_t) { add_sums(c, s0, s1, s2, s3); }
};

}  // namespace

#include "cpu/linear_int8.inl.h"
#include "cpu/linear_int8_products.inl.h"

void linear_int8_products(const Int8W& w, const Int8X& x, const Int8Tile& tile, int64_t* c) {
  products_tile<Dot>(w, x, tile, c);
}

}  // namespace qbits::cpu::avx2
