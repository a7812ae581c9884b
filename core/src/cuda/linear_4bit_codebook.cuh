#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "cuda/float_types.cuh"
#include "cuda/linear_4bit_ptx.cuh"
#include "ops/args.h"
#include "ops/codebook_fit.h"

// What the tensor-core kernels look codes up in.

namespace qbits::cuda {

inline constexpr float kAffineCentre = 8.0F;

template <class T>
inline constexpr int kSignificandBits = std::is_same_v<T, __half> ? 11 : 8;

template <class T>
FittedCodebook fit_operand(std::span<const float> codebook) {
  return fit_codebook(codebook, kSignificandBits<T>);
}

// kFit of a format's codebook, which takes milliseconds: of the format table's once, of others where another came last.
template <FittedCodebook (*kFit)(std::span<const float>)>
FittedCodebook fitted(const Format& format) {
  static const std::vector<FittedCodebook> table = [] {
    std::vector<FittedCodebook> fits(formats().size());
    for (size_t i = 0; i < fits.size(); ++i) {
      if (formats()[i].codebook.size() == 16) fits[i] = kFit(formats()[i].codebook);
    }
    return fits;
  }();
  for (size_t i = 0; i < table.size(); ++i) {
    if (&formats()[i] == &format) return table[i];
  }
  thread_local std::array<float, 16> last{};
  thread_local FittedCodebook fit{};
  if (!std::ranges::equal(last, format.codebook)) {
    fit = kFit(format.codebook);
    std::ranges::copy(format.codebook, last.begin());
  }
  return fit;
}

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
    const FittedCodebook fit = fitted<fit_operand<T>>(*weight.format);
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
