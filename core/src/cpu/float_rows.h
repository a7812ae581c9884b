#pragma once

#include <cstdint>

namespace qbits::cpu {

// Activations as float32 in the workspace, from an aligned start. Rows are whole numbers of the longest vectors'
// chunks, and one line longer, so that rows of a power of two do not meet in the same cache sets.
inline constexpr int64_t kRowAlignment = 64;

inline int64_t float_row_stride(int64_t cols) { return (cols + 127) / 128 * 128 + 16; }

inline int64_t float_rows_size(int64_t rows, int64_t cols) {
  return rows * float_row_stride(cols) * static_cast<int64_t>(sizeof(float)) + kRowAlignment;
}

inline float* float_rows(void* workspace) {
  const auto address = reinterpret_cast<uintptr_t>(workspace);
  return reinterpret_cast<float*>((address + kRowAlignment - 1) / kRowAlignment * kRowAlignment);
}

}  // namespace qbits::cpu
