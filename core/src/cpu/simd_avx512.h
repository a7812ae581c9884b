#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/float16.h"

// Sixteen lanes of AVX-512 (F, BW, DQ, VL); see simd_scalar.h for what each name means.

namespace qbits::cpu::avx512 {

struct F32 {
  __m512 v;
  static constexpr int kLanes = 16;
};

struct I32 {
  __m512i v;
};

struct Table16 {
  __m512i v;
};

inline F32 set1(float x) { return {_mm512_set1_ps(x)}; }
inline I32 set1(int32_t x) { return {_mm512_set1_epi32(x)}; }

inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline F32 load(const BFloat16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
inline F32 load(const Float16* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }

inline __m256i to_bf16(F32 x) {
  const __m512i b = _mm512_castps_si512(x.v);
  const __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(b, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(b, _mm512_set1_epi32(0x7fff)), lsb);
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  const __m512i chosen = _mm512_mask_or_epi32(rounded, nan, b, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
}

inline void store(float* p, F32 x) { _mm512_storeu_ps(p, x.v); }
inline void store(BFloat16* p, F32 x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(x)); }
inline void store(Float16* p, F32 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}

inline void stream_store(float* p, F32 x) { _mm512_stream_ps(p, x.v); }
inline void stream_store(BFloat16* p, F32 x) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_bf16(x)); }
inline void stream_store(Float16* p, F32 x) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}

inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 sqrt(F32 a) { return {_mm512_sqrt_ps(a.v)}; }
inline F32 fmadd(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 muladd(F32 a, F32 b, F32 c) { return fmadd(a, b, c); }
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 round(F32 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline float sum(F32 a) { return _mm512_reduce_add_ps(a.v); }
// The two halves of a vector added.
inline __m256 fold(F32 a) { return _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1)); }
inline void add_sums4(float* p, F32 a, F32 b, F32 c, F32 d) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
  _mm_storeu_ps(p, _mm_add_ps(_mm_loadu_ps(p), sums));
}
inline float min_lane(F32 a) { return _mm512_reduce_min_ps(a.v); }
inline float max_lane(F32 a) { return _mm512_reduce_max_ps(a.v); }

inline I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I32 operator&(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I32 operator^(I32 a, I32 b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline I32 sign_mask(I32 a) { return {_mm512_srai_epi32(a.v, 31)}; }
template <int kBits>
I32 shift_right(I32 a) {
  return {_mm512_srli_epi32(a.v, kBits)};
}
inline I32 max(I32 a, I32 b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline int32_t max_lane(I32 a) { return _mm512_reduce_max_epi32(a.v); }

inline I32 bits(F32 a) { return {_mm512_castps_si512(a.v)}; }
inline F32 from_bits(I32 a) { return {_mm512_castsi512_ps(a.v)}; }
inline F32 to_f32(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I32 to_i32(F32 a) { return {_mm512_cvttps_epi32(a.v)}; }

inline I32 twice_plus_greater(I32 a, F32 x, F32 y) {
  const __m512i twice = _mm512_add_epi32(a.v, a.v);
  const __mmask16 greater = _mm512_cmp_ps_mask(x.v, y.v, _CMP_GT_OQ);
  return {_mm512_mask_add_epi32(twice, greater, twice, _mm512_set1_epi32(1))};
}
inline I32 plus_if_greater(I32 a, I32 step, F32 x, F32 y) {
  const __mmask16 greater = _mm512_cmp_ps_mask(x.v, y.v, _CMP_GT_OQ);
  return {_mm512_mask_add_epi32(a.v, greater, a.v, step.v)};
}
inline I32 plus_if_greater(I32 a, I32 step, I32 x, I32 y) {
  return {_mm512_mask_add_epi32(a.v, _mm512_cmpgt_epi32_mask(x.v, y.v), a.v, step.v)};
}

inline Table16 load_table(const void* p) { return {_mm512_loadu_si512(p)}; }
inline I32 lookup_int(const Table16& t, I32 i) { return {_mm512_permutexvar_epi32(i.v, t.v)}; }
inline F32 lookup(const Table16& t, I32 i) { return from_bits(lookup_int(t, i)); }
inline F32 lookup_low8(const Table16& t, I32 i) { return lookup(t, i); }
inline F32 lookup_high8(const Table16& t, I32 i) { return lookup(t, i); }

inline F32 gather(const float* table, I32 index) { return {_mm512_i32gather_ps(index.v, table, 4)}; }
inline I32 gather(const int32_t* table, I32 index) { return {_mm512_i32gather_epi32(index.v, table, 4)}; }
inline F32 lookup_u8(const float* table, const uint8_t* p) {
  const __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm512_i32gather_ps(index, table, 4)};
}

inline void store_u8(uint8_t* p, I32 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x.v)); }
inline I32 load_u8(const uint8_t* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I32 load_i8(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline I32 load_i32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }

inline I32 load_nibbles(const uint8_t* p, int64_t i) {
  const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + i / 2));
  const __m128i mask = _mm_set1_epi8(0x0f);
  const __m128i low = _mm_and_si128(packed, mask);
  const __m128i high = _mm_and_si128(_mm_srli_epi16(packed, 4), mask);
  return {_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(high, low))};
}

inline I32 load_low_nibbles(const uint8_t* p, int64_t i) {
  // 32-bit words 0 and 1 fill eight lanes each.
  const __m512i words = _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + i / 2)));
  const __m512i word = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
  const __m512i shift = _mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
  return {_mm512_srlv_epi32(_mm512_permutexvar_epi32(word, words), shift)};
}

inline I32 load_words(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline I32 load_words(const uint8_t* p, int count) {
  return {_mm512_maskz_loadu_epi32(static_cast<__mmask16>((1U << count) - 1), p)};
}

inline void pack_nibbles(const uint8_t* codes, int64_t pairs, uint8_t* packed) {
  const __m512i weights = _mm512_set1_epi16(0x0110);  // even byte times 16 plus odd byte
  int64_t j = 0;
  for (; j + 32 <= pairs; j += 32) {
    const __m512i words = _mm512_maddubs_epi16(_mm512_loadu_si512(codes + 2 * j), weights);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(packed + j), _mm512_cvtepi16_epi8(words));
  }
  for (; j < pairs; ++j) packed[j] = static_cast<uint8_t>(codes[2 * j] << 4 | codes[2 * j + 1]);
}

// Orders stream_stores before what other threads are told next.
inline void stream_fence() { _mm_sfence(); }

}  // namespace qbits::cpu::avx512
