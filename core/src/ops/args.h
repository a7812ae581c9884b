#pragma once

#include <cstdint>

#include "qbits/format.h"
#include "qbits/tensor.h"

// What back ends receive: validated, non-empty, raw pointers. Shapes are flattened to what kernels need.

namespace qbits {

// Scales of a codebook weight. `values` is float (plain) or uint8_t (nested: nested_* are set).
struct AbsmaxArgs {
  const void* values = nullptr;
  const float* nested_absmax = nullptr;
  const float* nested_code = nullptr;
  const float* offset = nullptr;

  bool is_nested() const { return nested_absmax != nullptr; }
};

// A Weight4bit after validation. Codebook formats use `absmax`, affine ones `scales` and `zeros`.
struct Weight4bitArgs {
  const Format* format = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t block_size = 0;  // affine: already the row length where the caller said 0
  const uint8_t* codes = nullptr;
  AbsmaxArgs absmax;
  const void* scales = nullptr;
  const void* zeros = nullptr;
  DType scale_dtype = DType::Float32;

  bool is_affine() const { return format->coding == Coding::Affine; }
};

}  // namespace qbits
