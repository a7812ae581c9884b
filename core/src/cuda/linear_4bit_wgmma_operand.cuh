#pragma once

#include <limits>
#include <type_traits>

#include "cuda/linear_4bit_wgmma_parts.cuh"

// How codes and scales become numbers of wgmma's operand.

namespace qbits::cuda {

inline constexpr float kFractionShift = 4.0F;  // of fractions: a power of two, so that it leaves exactly
// Sums of affine codes: of operands, lest large zeros overflow float16, and the factors of codes bfloat16.
template <class T>
inline constexpr float kZeroShift = std::is_same_v<T, __half> ? 1.0F / 512 : 1.0F / 64;

// Sums of affine codes: a zero, shifted, as two negative numbers of T, the first in the high half. Added to a code the
// first is exact where the zero is under 2^(significand bits) - 16, for both are multiples of a power of two by which
// their sum is under 2^(significand bits); so that the second rounds the code less the zero once. A zero that is a
// number of T needs no second, and comes twice. Float16: to 2^-16 of what codes are apart, for smaller numbers are
// subnormal. kCode: the zero is known to be in [0, 16).
template <class T, bool kCode>
__device__ uint32_t split_zero(float zero) {
  constexpr float kRound = 1.5F * (1 << (23 - kSignificandBits<T>));  // times the power: added, it rounds to multiples
  constexpr float kCodes = 16.0F * kZeroShift<T>;
  const float z = zero * -kZeroShift<T>;
  float round = kCodes * kRound;
  if (!kCode && !(z <= 0.0F && z > -kCodes)) {
    const float bound = fabsf(z) + kCodes;
    if (!(bound < 0x1p24F)) return pack<T>(0.0F, z);
    round = __uint_as_float((__float_as_uint(bound) & 0x7f800000) + 0x00800000) * kRound;
  }
  const float first = __fsub_rn(__fadd_rn(z, round), round);
  return pack<T>(z - first, first);
}

// Of a byte that comes in both halves of a word, the high nibble in the low half.
inline constexpr uint32_t kCodesOfByteTwice = 0x000f00f0;

// An affine byte's codes less their zero, which split_zero gives, shifted. In place, the high nibble in the low half,
// they are subnormal numbers of T (bfloat16: up to 255 by 2^-133, the first normal ones among them).
template <class T, bool kSecond>
__device__ uint32_t subtract_zero(uint32_t byte_twice, uint32_t zero) {
  using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
  constexpr float kUnit = std::is_same_v<T, __half> ? 0x1p-24F : 0x1p-126F / 128;
  const uint32_t codes = byte_twice & kCodesOfByteTwice;
  const uint32_t factors = pack<T>(kZeroShift<T> / 16 / kUnit, kZeroShift<T> / kUnit);
  const uint32_t first = kSecond ? __byte_perm(zero, 0, 0x3232) : zero;
  const Pair near = __hfma2(reinterpret_cast<const Pair&>(codes), reinterpret_cast<const Pair&>(factors),
                            reinterpret_cast<const Pair&>(first));
  if constexpr (!kSecond) return reinterpret_cast<const uint32_t&>(near);
  const uint32_t second = __byte_perm(zero, 0, 0x1010);
  const Pair difference = __hadd2(near, reinterpret_cast<const Pair&>(second));
  return reinterpret_cast<const uint32_t&>(difference);
}

// Packed, affine: a weight is (code - first) scale + rest, a difference that is exact and one rounding. `first` is near
// the zero, and what it lacks, a 32nd in bfloat16 and a half in float16 at most, is in the rest.
struct WgmmaPackedScale {
  uint32_t scale_rest;  // numbers of T, the scale in the low half
  uint32_t first;       // as weight_of adds it to a pair of codes
};

template <class T>
struct WgmmaPacked {
  static constexpr bool kHalf = std::is_same_v<T, __half>;
  using Pair = std::conditional_t<kHalf, __half2, __nv_bfloat162>;
  static constexpr float kFirstStep = kHalf ? 1.0F : 1.0F / 16;
  static constexpr float kScaleUnit = kHalf ? 1.0F : kZeroShift<T>;  // of differences
  static constexpr float kMostFirst = kHalf ? 1000.0F : 240.0F;      // beyond, a difference need not be exact

  // kCode: the zero is known to be in [0, 16).
  template <bool kCode>
  __device__ static WgmmaPackedScale split(float scale, float zero) {
    constexpr float kRound = kFirstStep * 0x1.8p23F;  // added, it rounds to steps
    float first = __fsub_rn(__fadd_rn(zero, kRound), kRound);
    float rest = __fmul_rn(first - zero, fminf(scale, std::numeric_limits<float>::max()));
    if (!kCode && !(zero >= 0.0F && zero < 16.0F)) far(scale, zero, first, rest);
    const float low = kHalf ? -1024.0F - first : first * -kScaleUnit;
    return {pack<T>(scale / kScaleUnit, rest), pack<T>(kHalf ? -64.0F - first : low, low)};
  }

  // Of zeros that are no codes. The largest go to the rest, and what its rounding leaves to `first`.
  __device__ static void far(float scale, float zero, float& first, float& rest) {
    first = rintf(zero);
    rest = (first - zero) * scale;
    if (fabsf(zero) <= kMostFirst) return;
    rest = to_float(from_float<T>(-zero * scale));
    first = fminf(fmaxf(rintf(fmaf(zero, scale, rest) / scale), -kMostFirst), kMostFirst);
  }

  // An affine byte's, which comes in both halves of a word. In place, bfloat16: the codes are as subtract_zero has
  // them; float16: added to 1024.
  __device__ static uint32_t weight_of(uint32_t byte_twice, uint32_t first, uint32_t scale, uint32_t rest) {
    uint32_t codes = byte_twice & kCodesOfByteTwice;
    uint32_t factors = pack<T>(0x1p123F, 0x1p127F);
    if constexpr (kHalf) {
      // (byte & mask) | 1024 twice, of which the compiler would make two instructions
      asm("lop3.b32 %0, %1, %2, %3, 0xea;\n" : "=r"(codes) : "r"(byte_twice), "n"(kCodesOfByteTwice), "r"(0x64006400U));
      factors = pack<T>(1.0F / 16, 1.0F);
    }
    const Pair difference = __hfma2(as_pair(codes), as_pair(factors), as_pair(first));
    const Pair weights = __hfma2(difference, as_pair(scale), as_pair(rest));
    return reinterpret_cast<const uint32_t&>(weights);
  }

 private:
  __device__ static Pair as_pair(uint32_t bits) { return reinterpret_cast<const Pair&>(bits); }
};

// Packed, a codebook of bfloat16 numbers: a weight is value scale, of which the scale is two such numbers.
struct WgmmaPackedCodebook {
  // The upper half of a word is the scale's first 8 bits, the lower what they lack. An infinite scale lacks infinity,
  // for in the upper half it would make the lower none.
  __device__ static uint32_t split(float scale) {
    constexpr float kMost = 0x1.fep127F;  // of bfloat16
    const float upper = __uint_as_float(__float_as_uint(fminf(fmaxf(scale, -kMost), kMost)) & 0xffff0000);
    return pack<__nv_bfloat16>(scale - upper, upper);
  }

  // Rounded once: what the first product is rounded by is 2^-16 of the weight.
  __device__ static uint32_t weights_of(uint32_t values, uint32_t upper, uint32_t lower) {
    const __nv_bfloat162 small = __hmul2(as_pair(values), as_pair(lower));
    const __nv_bfloat162 weights = __hfma2(as_pair(values), as_pair(upper), small);
    return reinterpret_cast<const uint32_t&>(weights);
  }

 private:
  __device__ static __nv_bfloat162 as_pair(uint32_t bits) { return reinterpret_cast<const __nv_bfloat162&>(bits); }
};

// Weights: codes come as float16, which becomes float32 without the byte permutations that the matrix unit's register
// traffic holds up; but where products are of float16, rounding codes to it would err as much as theirs. There they
// come as fractions, the middle 16 bits of a float in [2, 8).
template <class T, class Shape>
inline constexpr bool kFractions = !Shape::kAffine && std::is_same_v<T, __half>;

// Weights, affine codes that are not looked up: they come in place, as subnormal numbers of float16 which become
// float32, the first of a pair 16 times as great; scales are greater by that.
inline constexpr float kFirstCodeUnit = 0x1p-20F;

// Scales of one row for 32 elements as the decoder wants them.
struct WgmmaScale {
  float scale;
  float zero;    // Weights: what is added to scaled codes
  float second;  // Weights, affine codes that are not looked up: the scale of the second of a pair
};

template <class T, class Shape>
__device__ WgmmaScale make_scale(float scale, float zero) {
  return {scale, kFractions<T, Shape> ? -kFractionShift * scale : zero, Shape::kLookedUp ? scale : 16 * scale};
}

// Weights: the first (kHalf 0), or the second, of a pair of codes, scaled in float32. `top`: the rest of a fraction.
template <class T, class Shape, int kHalf>
__device__ float scaled(uint32_t pair, uint32_t top, const WgmmaScale& s) {
  if constexpr (kFractions<T, Shape>) {
    return fmaf(__uint_as_float(__byte_perm(pair, top, kHalf == 0 ? 0x7104 : 0x7324)), s.scale, s.zero);
  }
  const __half2& codes = reinterpret_cast<const __half2&>(pair);
  const float code = kHalf == 0 ? __low2float(codes) : __high2float(codes);
  const float scale = kHalf == 0 ? s.scale : s.second;
  return Shape::kAffine ? fmaf(code, scale, s.zero) : code * scale;
}

// As something the compiler does not know: the selectors shall be the constants in the instructions. The window's low
// bits are 0.
__device__ inline uint32_t fraction_top(uint32_t window) { return 0x40000000 | (window & 0xffffff); }

}  // namespace qbits::cuda
