#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/float16.h"

// Eight lanes of AVX2; see simd_scalar.h for what each name means.

namespace qbits::cpu::avx2 {

struct F32 {
  __m256 v;
  static constexpr int kLanes = 8;
};

struct I32 {
  __m256i v;
};

struct Table16 {
  __m256i low, high;
};

inline F32 set1(float x) { return {_mm256_set1_ps(x)}; }
inline I32 set1(int32_t x) { return {_mm256_set1_epi32(x)}; }

inline F32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline F32 load(const BFloat16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
}
inline F32 load(const Float16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }

inline __m128i to_bf16(F32 x) {
  const __m256i b = _mm256_castps_si256(x.v);
  const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(b, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(b, _mm256_set1_epi32(0x7fff)), lsb);
  const __m256i quiet = _mm256_or_si256(b, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  const __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
}

inline void store(float* p, F32 x) { _mm256_storeu_ps(p, x.v); }
inline void store(BFloat16* p, F32 x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bf16(x)); }
inline void store(Float16* p, F32 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}

inline void stream_store(float* p, F32 x) { _mm256_stream_ps(p, x.v); }
inline void stream_store(BFloat16* p, F32 x) { _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_bf16(x)); }
inline void stream_store(Float16* p, F32 x) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}

inline F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F32 sqrt(F32 a) { return {_mm256_sqrt_ps(a.v)}; }
inline F32 fmadd(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 muladd(F32 a, F32 b, F32 c) { return fmadd(a, b, c); }
inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F32 round(F32 a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline float sum(F32 a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline void add_sums4(float* p, F32 a, F32 b, F32 c, F32 d) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v));
  const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
  _mm_storeu_ps(p, _mm_add_ps(_mm_loadu_ps(p), sums));
}
inline float min_lane(F32 a) {
  __m128 m = _mm_min_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  m = _mm_min_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_min_ss(m, _mm_movehdup_ps(m)));
}
inline float max_lane(F32 a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

inline I32 operator+(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline I32 operator-(I32 a, I32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
inline I32 operator&(I32 a, I32 b) { return {_mm256_and_si256(a.v, b.v)}; }
inline I32 operator^(I32 a, I32 b) { return {_mm256_xor_si256(a.v, b.v)}; }
inline I32 sign_mask(I32 a) { return {_mm256_srai_epi32(a.v, 31)}; }
template <int kBits>
I32 shift_right(I32 a) {
  return {_mm256_srli_epi32(a.v, kBits)};
}
inline I32 max(I32 a, I32 b) { return {_mm256_max_epi32(a.v, b.v)}; }
inline int32_t max_lane(I32 a) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}

inline I32 bits(F32 a) { return {_mm256_castps_si256(a.v)}; }
inline F32 from_bits(I32 a) { return {_mm256_castsi256_ps(a.v)}; }
inline F32 to_f32(I32 a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline I32 to_i32(F32 a) { return {_mm256_cvttps_epi32(a.v)}; }

inline I32 twice_plus_greater(I32 a, F32 x, F32 y) {
  const __m256i minus_one_if_greater = _mm256_castps_si256(_mm256_cmp_ps(x.v, y.v, _CMP_GT_OQ));
  return {_mm256_sub_epi32(_mm256_add_epi32(a.v, a.v), minus_one_if_greater)};
}
inline I32 plus_if_greater(I32 a, I32 step, F32 x, F32 y) {
  const __m256i greater = _mm256_castps_si256(_mm256_cmp_ps(x.v, y.v, _CMP_GT_OQ));
  return {_mm256_add_epi32(a.v, _mm256_and_si256(step.v, greater))};
}
inline I32 plus_if_greater(I32 a, I32 step, I32 x, I32 y) {
  return {_mm256_add_epi32(a.v, _mm256_and_si256(step.v, _mm256_cmpgt_epi32(x.v, y.v)))};
}

inline Table16 load_table(const void* p) {
  const auto* half = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(half), _mm256_loadu_si256(half + 1)};
}
inline I32 lookup_int(const Table16& t, I32 i) {
  const __m256 low = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(t.low, i.v));
  const __m256 high = _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(t.high, i.v));
  const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(i.v, 28));
  return {_mm256_castps_si256(_mm256_blendv_ps(low, high, bit3))};
}
inline F32 lookup(const Table16& t, I32 i) { return from_bits(lookup_int(t, i)); }
inline F32 lookup_low8(const Table16& t, I32 i) { return {_mm256_permutevar8x32_ps(_mm256_castsi256_ps(t.low), i.v)}; }
inline F32 lookup_high8(const Table16& t, I32 i) {
  return {_mm256_permutevar8x32_ps(_mm256_castsi256_ps(t.high), i.v)};
}

inline F32 gather(const float* table, I32 index) { return {_mm256_i32gather_ps(table, index.v, 4)}; }
inline I32 gather(const int32_t* table, I32 index) { return {_mm256_i32gather_epi32(table, index.v, 4)}; }
// Eight loads beat a gather, which needs its indices in a vector first.
inline F32 lookup_u8(const float* table, const uint8_t* p) {
  return {_mm256_setr_ps(table[p[0]], table[p[1]], table[p[2]], table[p[3]], table[p[4]], table[p[5]], table[p[6]],
                         table[p[7]])};
}

inline void store_u8(uint8_t* p, I32 x) {
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(x.v), _mm256_extracti128_si256(x.v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}
inline I32 load_u8(const uint8_t* p) {
  return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
inline I32 load_i8(const int8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))};
}
inline I32 load_i32(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }

inline I32 load_nibbles(const uint8_t* p, int64_t i) {
  int32_t packed;
  __builtin_memcpy(&packed, p + i / 2, 4);
  const __m128i low = _mm_cvtsi32_si128(packed & 0x0f0f0f0f);
  const __m128i high = _mm_cvtsi32_si128(static_cast<int32_t>(static_cast<uint32_t>(packed) >> 4 & 0x0f0f0f0f));
  return {_mm256_cvtepu8_epi32(_mm_unpacklo_epi8(high, low))};
}

inline I32 load_low_nibbles(const uint8_t* p, int64_t i) {
  int32_t word;
  __builtin_memcpy(&word, p + i / 2, 4);
  return {_mm256_srlv_epi32(_mm256_set1_epi32(word), _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24))};
}

inline I32 load_words(const uint8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline I32 load_words(const uint8_t* p, int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm256_maskload_epi32(reinterpret_cast<const int*>(p), _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane))};
}

inline void pack_nibbles(const uint8_t* codes, int64_t pairs, uint8_t* packed) {
  const __m256i weights = _mm256_set1_epi16(0x0110);  // even byte times 16 plus odd byte
  int64_t j = 0;
  for (; j + 16 <= pairs; j += 16) {
    const __m256i in = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 2 * j));
    const __m256i words = _mm256_maddubs_epi16(in, weights);
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(packed + j), _mm256_castsi256_si128(bytes));
  }
  for (; j < pairs; ++j) packed[j] = static_cast<uint8_t>(codes[2 * j] << 4 | codes[2 * j + 1]);
}

// Orders stream_stores before what other threads are told next.
inline void stream_fence() { _mm_sfence(); }

// c[0..3] += the sum of the 32-bit lanes of each argument.
inline void add_sums(int64_t* c, __m256i s0, __m256i s1, __m256i s2, __m256i s3) {
  const __m256i halves = _mm256_hadd_epi32(_mm256_hadd_epi32(s0, s1), _mm256_hadd_epi32(s2, s3));
  const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  auto* to = reinterpret_cast<__m256i*>(c);
  _mm256_storeu_si256(to, _mm256_add_epi64(_mm256_loadu_si256(to), _mm256_cvtepi32_epi64(sums)));
}

}  // namespace qbits::cpu::avx2
