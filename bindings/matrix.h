#pragma once

#include <cstdint>

#include "qbits/tensor.h"

namespace qbits::bindings {

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
