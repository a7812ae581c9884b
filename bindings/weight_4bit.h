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

}  // namespace qbits::bindings
