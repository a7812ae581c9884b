#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "cuda/float_types.cuh"
#include "cuda/linear_4bit_ptx.cuh"
#include "ops/args.h"
#include "ops/codebook_fit.h"

// What the tensor-core kernels look codes up in.

namespace qbits::cuda {

inline constexpr float kAffineCentre = 8.0F;

template <class T>
inline constexpr int kSignificandBits = std::is_same_v<T, __half> ? 11 : 8;

// The value of each code of a format as bits of T, in the lower half, and the factor by which the true values are
// smaller. Bits 16 + t + 4 h tell the places where the next number away from 0 stands for a dithered one: the first (h
// 0) or second of a pair, in the lanes t modulo 4: an eighth of a row each, and where lanes go along columns, of two
// columns.
struct OperandCodebook {
  uint32_t values[16];
  float factor = 1.0F;
};

template <class T>
OperandCodebook operand_codebook(const FittedCodebook& fit) {
  OperandCodebook book{.factor = fit.factor};
  for (uint32_t code = 0; code < 16; ++code) {
    const T value(fit.values[code]);
    const auto raised = static_cast<uint32_t>(fit.raised[code]);
    book.values[code] = std::bit_cast<uint16_t>(value);
    for (uint32_t place = 0; place < kFitPlaces; ++place) {
      if ((place * raised + code) % kFitPlaces < raised) book.values[code] |= 0x10000U << place;
    }
  }
  return book;
}

// For products of T that are scaled in float32.
template <class T>
OperandCodebook sums_codebook(const Weight4bitArgs& weight) {
  if (!weight.is_affine()) {
    return operand_codebook<T>(fitted<FitTarget{.bits = kSignificandBits<T>}>(*weight.format));
  }
  FittedCodebook codes{.factor = 1.0F};
  for (int code = 0; code < 16; ++code) codes.values[code] = static_cast<float>(code) - kAffineCentre;
  return operand_codebook<T>(codes);
}

// The pairs of two codes, the first in the low half, in the lanes 0 to 3 modulo 4.
__device__ inline uint4 lane_pairs(uint32_t first, uint32_t second) {
  const uint32_t pair = __byte_perm(first, second, 0x5410);
  const uint32_t raised = __byte_perm(first, second >> 4, 0x7632);
  constexpr uint32_t kBoth = 0x00010001;
  return make_uint4(pair + (raised & kBoth), pair + (raised >> 1 & kBoth), pair + (raised >> 2 & kBoth),
                    pair + (raised >> 3 & kBoth));
}

}  // namespace qbits::cuda
