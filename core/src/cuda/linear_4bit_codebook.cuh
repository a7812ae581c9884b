#pragma once

#include <array>
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

// The value of each code of a format as bits of T, and the factor by which the true values are smaller.
struct OperandCodebook {
  uint16_t values[16];
  float factor = 1.0F;
};

template <class T>
OperandCodebook operand_codebook(const Weight4bitArgs& weight) {
  OperandCodebook book{};
  std::array<float, 16> values{};
  if (weight.is_affine()) {
    for (int code = 0; code < 16; ++code) values[code] = static_cast<float>(code) - kAffineCentre;
  } else {
    const FittedCodebook& fit = fitted<fit_operand<kSignificandBits<T>>>(*weight.format);
    values = fit.values;
    book.factor = fit.factor;
  }
  for (int code = 0; code < 16; ++code) {
    const T value(values[code]);
    book.values[code] = std::bit_cast<uint16_t>(value);
  }
  return book;
}

}  // namespace qbits::cuda
