#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/float_types.cuh"
#include "cuda/launch.h"
#include "ops/args.h"

// A 4-bit weight as kernels of linear_4bit and its gradient see it.

namespace qbits::cuda {

// One float32, bfloat16 or float16 element of an array whose dtype is known at run time.
__device__ inline float load_float(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::BFloat16:
      return to_float(static_cast<const __nv_bfloat16*>(data)[i]);
    case DType::Float16:
      return to_float(static_cast<const __half*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

struct Weight4bitView {
  const uint8_t* codes;
  int64_t rows;
  int64_t cols;
  int64_t block_size;
  int block_shift;  // log2 of block_size, or -1
  bool affine;
  int64_t row_groups;  // affine: groups of a row
  const void* scales;  // absmax (float, or uint8 if nested_absmax is set) or affine scales
  const void* zeros;
  DType scale_dtype;  // of affine scales and zeros
  const float* nested_absmax;
  const float* nested_code;
  const float* offset;
  float codebook[16];  // zeros for affine formats

  // Position in `scales` of element (n, k).
  __device__ int64_t scale_index(int64_t n, int64_t k) const {
    const int64_t i = affine ? k : n * cols + k;
    const int64_t block = block_shift >= 0 ? i >> block_shift : i / block_size;
    return affine ? n * row_groups + block : block;
  }

  __device__ float scale(int64_t i) const {
    if (affine) return load_float(scales, scale_dtype, i);
    if (nested_absmax == nullptr) return static_cast<const float*>(scales)[i];
    const float value = nested_code[static_cast<const uint8_t*>(scales)[i]];
    return __fadd_rn(__fmul_rn(value, nested_absmax[i / 256]), *offset);
  }

  __device__ float zero(int64_t i) const { return affine ? load_float(zeros, scale_dtype, i) : 0.0f; }
};

inline Weight4bitView make_view(const Weight4bitArgs& w) {
  Weight4bitView v{};
  v.codes = w.codes;
  v.rows = w.rows;
  v.cols = w.cols;
  v.block_size = w.block_size;
  v.affine = w.is_affine();
  if (v.affine && v.block_size >= v.cols) {
    v.block_size = std::max<int64_t>(v.cols, 1);
    v.block_shift = 62;
  } else {
    v.block_shift = exact_log2(v.block_size);
  }
  v.row_groups = ceil_div(v.cols, v.block_size);
  v.scales = v.affine ? w.scales : w.absmax.values;
  v.zeros = w.zeros;
  v.scale_dtype = w.scale_dtype;
  v.nested_absmax = w.absmax.nested_absmax;
  v.nested_code = w.absmax.nested_code;
  v.offset = w.absmax.offset;
  std::ranges::copy(w.format->codebook, v.codebook);
  return v;
}

// The 8 codes from element `first` on, one byte pair of nibbles after the other as stored: code j is nibble
// j ^ 1 of the word. Elements at and past `end` come out as 0. Any alignment; rows may start inside a byte.
__device__ inline uint32_t load_codes8(const uint8_t* codes, int64_t first, int64_t end) {
  const uint8_t* p = codes + (first >> 1);
  if ((first & 1) == 0 && first + 8 <= end) {
    if ((reinterpret_cast<uintptr_t>(p) & 3) == 0) return *reinterpret_cast<const uint32_t*>(p);
    return p[0] | p[1] << 8 | p[2] << 16 | static_cast<uint32_t>(p[3]) << 24;
  }
  uint32_t word = 0;
  for (int j = 0; j < 8 && first + j < end; ++j) {
    const int64_t i = first + j;
    const uint32_t code = (codes[i >> 1] >> ((i & 1) ? 0 : 4)) & 15;
    word |= code << (4 * (j ^ 1));
  }
  return word;
}

__device__ inline int code_of(uint32_t word, int j) { return (word >> (4 * (j ^ 1))) & 15; }

// Dequantizes the 8 elements of row n from column k on into `out`; those at and past `cols` become 0.
// `codebook` is in shared memory: its 16 entries lie in 16 banks, so lookups never conflict.
__device__ inline void dequantize8(const Weight4bitView& w, const float* codebook, int64_t n, int64_t k, float* out) {
  const int64_t row = n * w.cols;
  const uint32_t word = load_codes8(w.codes, row + k, row + w.cols);
  const int64_t last = k + 7 < w.cols ? k + 7 : w.cols - 1;
  const int64_t first_scale = w.scale_index(n, k);
  const bool uniform = first_scale == w.scale_index(n, last);
  float scale = w.scale(first_scale);
  float zero = w.zero(first_scale);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (k + j >= w.cols) {
      out[j] = 0.0f;
      continue;
    }
    if (!uniform && j > 0) {
      const int64_t i = w.scale_index(n, k + j);
      scale = w.scale(i);
      zero = w.zero(i);
    }
    const int code = code_of(word, j);
    const float value = w.affine ? __fsub_rn(static_cast<float>(code), zero) : codebook[code];
    out[j] = __fmul_rn(value, scale);
  }
}

}  // namespace qbits::cuda
