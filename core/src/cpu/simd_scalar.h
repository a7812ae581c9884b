#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/float16.h"

// The vector types of kernels, one lane wide. simd_avx2.h and simd_avx512.h have the same names and
// meaning; kernels (*.inl.h) are written once against them.
//   F32  kLanes floats          I32  kLanes 32-bit integers
//   Table16  sixteen 32-bit entries looked up by the low four bits of an index

namespace qbits::cpu::scalar {

struct F32 {
  float v;
  static constexpr int kLanes = 1;
};

struct I32 {
  int32_t v;
};

struct Table16 {
  int32_t v[16];
};

inline F32 set1(float x) { return {x}; }
inline I32 set1(int32_t x) { return {x}; }

template <class T>
F32 load(const T* p) {
  return {to_float(*p)};
}

template <class T>
void store(T* p, F32 x) {
  from_float(x.v, *p);
}

inline F32 operator+(F32 a, F32 b) { return {a.v + b.v}; }
inline F32 operator-(F32 a, F32 b) { return {a.v - b.v}; }
inline F32 operator*(F32 a, F32 b) { return {a.v * b.v}; }
inline F32 operator/(F32 a, F32 b) { return {a.v / b.v}; }
inline F32 sqrt(F32 a) { return {std::sqrt(a.v)}; }
inline F32 fmadd(F32 a, F32 b, F32 c) { return {std::fma(a.v, b.v, c.v)}; }
// a * b + c for sums whose last bit is free: fused where that is fast.
inline F32 muladd(F32 a, F32 b, F32 c) { return {a.v * b.v + c.v}; }
inline F32 min(F32 a, F32 b) { return {a.v < b.v ? a.v : b.v}; }
inline F32 max(F32 a, F32 b) { return {a.v > b.v ? a.v : b.v}; }
// To the nearest integer, halves to even.
inline F32 round(F32 a) { return {std::nearbyint(a.v)}; }
inline float sum(F32 a) { return a.v; }
// p[0..3] += the sum of the lanes of each argument.
inline void add_sums4(float* p, F32 a, F32 b, F32 c, F32 d) {
  p[0] += a.v;
  p[1] += b.v;
  p[2] += c.v;
  p[3] += d.v;
}
inline float min_lane(F32 a) { return a.v; }
inline float max_lane(F32 a) { return a.v; }

inline I32 operator+(I32 a, I32 b) { return {a.v + b.v}; }
inline I32 operator-(I32 a, I32 b) { return {a.v - b.v}; }
inline I32 operator&(I32 a, I32 b) { return {a.v & b.v}; }
inline I32 operator^(I32 a, I32 b) { return {a.v ^ b.v}; }
// All ones where negative, else zero.
inline I32 sign_mask(I32 a) { return {a.v >> 31}; }
template <int kBits>
I32 shift_right(I32 a) {
  return {static_cast<int32_t>(static_cast<uint32_t>(a.v) >> kBits)};
}
inline I32 max(I32 a, I32 b) { return {std::max(a.v, b.v)}; }
inline int32_t max_lane(I32 a) { return a.v; }

inline I32 bits(F32 a) { return {std::bit_cast<int32_t>(a.v)}; }
inline F32 from_bits(I32 a) { return {std::bit_cast<float>(a.v)}; }
inline F32 to_f32(I32 a) { return {static_cast<float>(a.v)}; }
inline I32 to_i32(F32 a) { return {static_cast<int32_t>(a.v)}; }

// a + a + (x > y ? 1 : 0), the step of a binary search.
inline I32 twice_plus_greater(I32 a, F32 x, F32 y) { return {a.v + a.v + (x.v > y.v)}; }

// a + (x > y ? step : 0).
inline I32 plus_if_greater(I32 a, I32 step, F32 x, F32 y) { return {a.v + (x.v > y.v ? step.v : 0)}; }
inline I32 plus_if_greater(I32 a, I32 step, I32 x, I32 y) { return {a.v + (x.v > y.v ? step.v : 0)}; }

inline Table16 load_table(const float* p) {
  Table16 t;
  std::memcpy(t.v, p, sizeof t.v);
  return t;
}
inline Table16 load_table(const int32_t* p) {
  Table16 t;
  std::memcpy(t.v, p, sizeof t.v);
  return t;
}
inline F32 lookup(const Table16& t, I32 i) { return {std::bit_cast<float>(t.v[i.v & 15])}; }
inline I32 lookup_int(const Table16& t, I32 i) { return {t.v[i.v & 15]}; }
// The same where every index is known to be below 8, or every one at least 8.
inline F32 lookup_low8(const Table16& t, I32 i) { return lookup(t, i); }
inline F32 lookup_high8(const Table16& t, I32 i) { return lookup(t, i); }

// table[index[lane]] for a table of any length.
inline F32 gather(const float* table, I32 index) { return {table[index.v]}; }
inline I32 gather(const int32_t* table, I32 index) { return {table[index.v]}; }
// table[p[lane]].
inline F32 lookup_u8(const float* table, const uint8_t* p) { return {table[*p]}; }

inline void store_u8(uint8_t* p, I32 x) { *p = static_cast<uint8_t>(x.v); }
inline I32 load_u8(const uint8_t* p) { return {*p}; }
inline I32 load_i8(const int8_t* p) { return {*p}; }
inline I32 load_i32(const int32_t* p) { return {*p}; }

// Codes `i`..`i + kLanes` of a packed 4-bit stream; i is a multiple of kLanes.
inline I32 load_nibbles(const uint8_t* p, int64_t i) { return {i % 2 ? p[i / 2] & 15 : p[i / 2] >> 4}; }

// The same with anything above the low four bits of a lane: cheaper, and enough for lookup.
inline I32 load_low_nibbles(const uint8_t* p, int64_t i) { return load_nibbles(p, i); }

// kLanes 32-bit words, least significant byte first, of which only the first `count` are read where it is given.
inline I32 load_words(const uint8_t* p) {
  return {static_cast<int32_t>(p[0] | p[1] << 8 | p[2] << 16 | static_cast<uint32_t>(p[3]) << 24)};
}
inline I32 load_words(const uint8_t* p, int count) { return count > 0 ? load_words(p) : I32{0}; }

// packed[j] = codes[2j] << 4 | codes[2j + 1].
inline void pack_nibbles(const uint8_t* codes, int64_t pairs, uint8_t* packed) {
  for (int64_t j = 0; j < pairs; ++j) packed[j] = static_cast<uint8_t>(codes[2 * j] << 4 | codes[2 * j + 1]);
}

// A store that may bypass the caches, for outputs that do not fit in them.
template <class T>
void stream_store(T* p, F32 x) {
  store(p, x);
}

// Orders stream_stores before what other threads are told next.
inline void stream_fence() {}

}  // namespace qbits::cpu::scalar
