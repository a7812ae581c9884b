#include <immintrin.h>

#include "cpu/linear_int8_kernel.h"

// Without simd_avx512.h: its inline functions compiled here could replace those for CPUs that lack VNNI.

namespace qbits::cpu::avx512vnni {
namespace {

struct Dot {
  static constexpr int kStep = 64;
  static constexpr int kMicroM = 6;
  using Weights = __m512i;
  using Codes = __m512i;
  using Sums = __m512i;

  // The instruction wants one factor unsigned: codes of W plus 128.
  static Weights offset(__m512i codes) { return _mm512_xor_si512(codes, _mm512_set1_epi8(-128)); }
  static Weights weights(const int8_t* p) { return offset(_mm512_loadu_si512(p)); }
  static Weights weights(const int8_t* p, int count) {
    return offset(_mm512_maskz_loadu_epi8((uint64_t{1} << count) - 1, p));
  }
  static Sums zero() { return _mm512_setzero_si512(); }
  static Codes codes(const int8_t* p) { return _mm512_load_si512(p); }
  static Sums add(Sums sums, Weights w, Codes x) { return _mm512_dpbusd_epi32(sums, w, x); }
  static __m256i fold(Sums s) { return _mm256_add_epi32(_mm512_castsi512_si256(s), _mm512_extracti64x4_epi64(s, 1)); }
  static void add_sums4(int64_t* c, Sums s0, Sums s1, Sums s2, Sums s3, int32_t x_sum) {
    const __m256i halves =
        _mm256_hadd_epi32(_mm256_hadd_epi32(fold(s0), fold(s1)), _mm256_hadd_epi32(fold(s2), fold(s3)));
    const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
    const __m128i exact = _mm_sub_epi32(sums, _mm_set1_epi32(128 * x_sum));
    _mm256_storeu_si256(
        reinterpret_cast<__m256i*>(c),
        _mm256_add_epi64(_mm256_loadu_si256(reinterpret_cast<__m256i*>(c)), _mm256_cvtepi32_epi64(exact)));
  }
};

}  // namespace
#include "cpu/linear_int8_products.inl.h"

void linear_int8_products(const Int8W& w, const Int8X& x, const Int8Tile& tile, int64_t* c) {
  products_tile<Dot>(w, x, tile, c);
}
}  // namespace qbits::cpu::avx512vnni
