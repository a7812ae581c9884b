#pragma once

#include <cstdint>

namespace qbits::cpu {

// Activations as float32 in the workspace: rows of a whole number of vectors, the rest of a row zeros, from an
// aligned start.
inline constexpr int64_t kRowMultiple = 128;
inline constexpr int64_t kRowAlignment = 64;

inline int64_t padded_cols(int64_t cols) { return (cols + kRowMultiple - 1) / kRowMultiple * kRowMultiple; }

inline int64_t float_rows_size(int64_t rows, int64_t cols) {
  return rows * padded_cols(cols) * static_cast<int64_t>(sizeof(float)) + kRowAlignment;
}

inline float* float_rows(void* workspace) {
  const auto address = reinterpret_cast<uintptr_t>(workspace);
  return reinterpret_cast<float*>((address + kRowAlignment - 1) / kRowAlignment * kRowAlignment);
}

}  // namespace qbits::cpu
