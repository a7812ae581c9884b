#pragma once

#include <bit>
#include <cstdint>

// The 16-bit floats in portable code, rounding to nearest even; tag types for kernels. The functions are static so that
// the linker cannot merge copies compiled for different instruction sets.

namespace qbits::cpu {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

static inline float to_float(float x) { return x; }

static inline float to_float(BFloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

static inline float to_float(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (rest & 0x3ff) << 13 | (rest > 0x7c00) << 22);
  // Shifted into place the exponent is 112 too small; the product also normalizes subnormals exactly.
  const float magnitude = std::bit_cast<float>(rest << 13) * 0x1p112F;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

static inline void from_float(float x, float& out) { out = x; }

static inline void from_float(float x, BFloat16& out) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const bool nan = (bits & 0x7fffffff) > 0x7f800000;
  out.bits = static_cast<uint16_t>((nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline void from_float(float x, Float16& out) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t rest = bits & 0x7fffffff;
  uint32_t half;
  if (rest > 0x7f800000) {
    half = 0x7e00 | (rest >> 13 & 0x3ff);
  } else if (rest >= 0x477ff000) {  // 65520 and above round to infinity
    half = 0x7c00;
  } else if (rest < 0x38800000) {  // below 2^-14: add a magic number so that the FPU rounds at bit 2^-24
    half = std::bit_cast<uint32_t>(std::bit_cast<float>(rest) + 0.5F) - 0x3f000000;
  } else {
    half = (rest + 0xfff + (rest >> 13 & 1) - 0x38000000) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | half);
}

}  // namespace qbits::cpu
