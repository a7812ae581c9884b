#pragma once

#include <optional>

#include "qbits/format.h"
#include "qbits/linear.h"
#include "qbits/tensor.h"

namespace qbits::bindings {

using OptionalView = const std::optional<TensorView>&;

// "scales" is the absmax of a codebook format and the group scales of an affine one.
inline Weight4bit weight_4bit(const TensorView& codes, const TensorView& scales, const Format& format,
                              int64_t block_size, int64_t n, int64_t k, OptionalView zeros, OptionalView nested_absmax,
                              OptionalView nested_code, OptionalView offset) {
  Weight4bit weight;
  weight.format = &format;
  weight.rows = n;
  weight.cols = k;
  weight.block_size = block_size;
  weight.codes = codes;
  weight.zeros = zeros;
  weight.absmax.nested_absmax = nested_absmax;
  weight.absmax.nested_code = nested_code;
  weight.absmax.offset = offset;
  if (format.coding == Coding::Codebook) {
    weight.absmax.values = scales;
  } else {
    weight.scales = scales;
  }
  return weight;
}

// A row-major view of all leading dimensions as one: torch has any number of them, libqbits two. A tensor
// that is not contiguous is passed on for libqbits to refuse.
inline TensorView matrix(const TensorView& x) {
  if (x.ndim == 2 || x.ndim == 0 || !x.is_contiguous()) return x;
  const int64_t cols = x.shape[x.ndim - 1];
  int64_t rows = 1;
  for (int i = 0; i + 1 < x.ndim; ++i) rows *= x.shape[i];
  return TensorView::contiguous(x.data, x.dtype, {rows, cols}, x.device);
}

inline int64_t rows(const TensorView& x) { return x.ndim == 0 ? 1 : matrix(x).shape[0]; }

}  // namespace qbits::bindings
