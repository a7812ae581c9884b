#include "cpu/igemm_kernel.h"
#include "cpu/simd_avx2.h"

namespace qbits::cpu::avx2 {
namespace {

// In 16 bits: the bytes of linear_int8's products have no room for -128 times -128.
struct Dot {
  static constexpr int kStep = 16;
  static constexpr int kMicroM = 2;
  using Weights = __m256i;
  using Codes = __m256i;
  using Sums = __m256i;

  static Weights weights(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Weights weights(const int8_t* p, int count) {
    alignas(16) int8_t rest[kStep] = {};
    for (int i = 0; i < count; ++i) rest[i] = p[i];
    return weights(rest);
  }
  static Sums zero() { return _mm256_setzero_si256(); }
  static Codes codes(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Sums add(Sums sums, Weights w, Codes x) { return _mm256_add_epi32(sums, _mm256_madd_epi16(w, x)); }
  static void add_sums4(int64_t* c, Sums s0, Sums s1, Sums s2, Sums s3, int32_t) { add_sums(c, s0, s1, s2, s3); }
};

}  // namespace

#include "cpu/linear_int8_products.inl.h"

void igemm_products(const Int8W& w, const Int8X& x, const Int8Tile& tile, int64_t* c) {
  products_tile<Dot>(w, x, tile, c);
}

}  // namespace qbits::cpu::avx2
