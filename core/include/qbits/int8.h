#pragma once

#include <cstdint>
#include <optional>

#include "qbits/export.h"
#include "qbits/tensor.h"

// LLM.int8() (Dettmers et al., arXiv 2208.07339): rows in 8 bits with one scale each, and products of such rows, from
// which columns of x that hold large values, outliers, are kept out and multiplied in x's own precision. Beside them
// its parts: the product of integers, what turns that into floats, columns in 8 bits, products with x as it is.
// The conventions of quantize.h hold: contiguous, one device, errors before writes, caller allocates, the CPU and CUDA
// write identical bits (linear_int8: where no column is an outlier).
// A row's scale is its absmax s: the value of code q is q s / 127.

namespace qbits {

// The columns of x that hold outliers, ascending, as quantize_int8_rowwise found them. They stay on the device of x.
struct OutlierColumns {
  TensorView columns;  // int32[cols]; -1 from `count` on
  TensorView count;    // int32, one element
};

// Bytes of scratch memory quantize_int8_rowwise needs for [rows, cols]; 0 is possible.
QBITS_API int64_t quantize_int8_rowwise_workspace(int64_t rows, int64_t cols, float threshold, Device device);

// Rounds 127 x / s to the nearest integer, halves to even, s being the row's absmax; the quotient x / s is rounded once
// to float32. With a threshold above 0, an element |x| >= threshold makes its column an outlier: the codes of that
// column are 0 in all rows, and s is the absmax of the row's elements below the threshold, be they in such columns or
// not. A row of zeros has scale 0 and codes 0. A NaN, or without a threshold an infinity, makes its own row's scale NaN
// and the row's codes 0; with a threshold an infinity is an outlier.
//   x          float [.., cols], rows of which there may be none
//   threshold  0 (no outliers) or above; finite
//   codes      int8, as x
//   scales     float32[rows]
//   outliers   to be written; absent if and only if the threshold is 0
//   workspace  uint8, on CUDA on a 16-byte boundary, at least quantize_int8_rowwise_workspace(rows, cols, threshold,
//   device) elements
QBITS_API void quantize_int8_rowwise(const TensorView& x, float threshold, const TensorView& codes,
                                     const TensorView& scales, const std::optional<OutlierColumns>& outliers,
                                     const TensorView& workspace, Stream stream = {});

// out[i, k] = codes[i, k] scales[i] / 127, as a float32 product with the scale and one with the float32 nearest to
// 1/127, as bitsandbytes has it, then one rounding to out's dtype. Scales from 2^121 on may overflow.
//   codes   int8 [.., cols]
//   scales  float32, one for each row
//   out     float, as codes
QBITS_API void dequantize_int8_rowwise(const TensorView& codes, const TensorView& scales, const TensorView& out,
                                       Stream stream = {});

// Bytes of scratch memory quantize_int8_colwise needs for [rows, cols].
QBITS_API int64_t quantize_int8_colwise_workspace(int64_t rows, int64_t cols, Device device);

// The codes of quantize_int8_rowwise for columns: 127 x / s, s being the column's absmax. With a threshold above 0 an
// outlier, an element |x| >= threshold, has code 0 and does not count for s; the others of its column have theirs
// (bitsandbytes' int8_double_quant). A column of zeros, or of no rows, has scale 0 and codes 0. A NaN, or without a
// threshold an infinity, makes its own column's scale NaN and the column's codes 0.
//   x          float [.., cols], rows of which there may be none
//   threshold  0 (no outliers) or above; finite
//   codes      int8, as x
//   scales     float32[cols]
//   workspace  uint8, on CUDA on a 16-byte boundary, at least quantize_int8_colwise_workspace(rows, cols, device)
//   elements
QBITS_API void quantize_int8_colwise(const TensorView& x, float threshold, const TensorView& codes,
                                     const TensorView& scales, const TensorView& workspace, Stream stream = {});

// Rows of int8 codes with a scale each: a weight [N, K] as LLM.int8() stores it (bitsandbytes' CB and SCB).
struct WeightInt8 {
  TensorView codes;   // int8 [N, K]
  TensorView scales;  // float32 [N], not negative
};

// Bytes of scratch memory linear_int8 needs for `m` rows of x in dtype `x`.
QBITS_API int64_t linear_int8_workspace(const WeightInt8& weight, int64_t m, DType x, float threshold);

// out = x W^T + bias, x being quantized as by quantize_int8_rowwise(threshold), outlier columns apart:
//   out[m, n] = b (a dot + o) + bias[n]
// in float32, the last sum by one fused multiply-add, where dot is the integer product of the codes, exact and rounded
// once, a = s_x[m] / 127, b = s_w[n] / 127, and o the sum over outlier columns k of x[m, k] code_w[n, k], in float32.
// Where there are any, the CPU adds o to a dot by one fused multiply-add, and on CUDA o begins with a dot and goes
// through the columns in ascending order. M changes neither: a row of out depends on its own row of x and on the set
// of outlier columns. A NaN or an infinity in x reaches the row that holds it and no other.
//   x          float [.., K], M rows; M may be 0
//   weight     any N and K
//   bias       [N] in x's dtype, or absent
//   threshold  0 (no outliers) or above; finite. LLM.int8() takes 6
//   out        [.., N] in x's dtype
//   workspace  uint8, on CUDA on a 16-byte boundary, at least linear_int8_workspace(weight, M, x.dtype, threshold)
//   elements
// On the CPU a scale that is negative or NaN is refused; on CUDA, where looking would synchronise, it is used.
QBITS_API void linear_int8(const TensorView& x, const WeightInt8& weight, const std::optional<TensorView>& bias,
                           float threshold, const TensorView& out, const TensorView& workspace, Stream stream = {});

// Bytes of scratch memory linear_int8_weight_only needs for `m` rows of x in dtype `x`.
QBITS_API int64_t linear_int8_weight_only_workspace(const WeightInt8& weight, int64_t m, DType x);

// out = x W^T + bias, x being taken as it is:
//   out[m, n] = (scales[n] / 127) sum over k of x[m, k] codes[n, k] + bias[n]
// where products are exact, or rounded with their sum, and are summed in float32, in an order that depends on the sizes
// and the device alone; then one fused multiply-add and one rounding to x's dtype. A NaN or an infinity in x reaches
// the row that holds it and no other.
//   x          float [.., K], M rows; M may be 0
//   weight     any N and K
//   bias       [N] in x's dtype, or absent
//   out        [.., N] in x's dtype
//   workspace  uint8, on CUDA on a 16-byte boundary, at least linear_int8_weight_only_workspace(weight, M, x.dtype)
//   elements
// Scales as in linear_int8.
QBITS_API void linear_int8_weight_only(const TensorView& x, const WeightInt8& weight,
                                       const std::optional<TensorView>& bias, const TensorView& out,
                                       const TensorView& workspace, Stream stream = {});

// Bytes of scratch memory igemm needs for these operands; of their data only the addresses matter.
QBITS_API int64_t igemm_workspace(const TensorView& a, bool transpose_a, const TensorView& b, bool transpose_b);

// out = A B in integers, A and B being a and b or their transposes. Sums are modulo 2^32: exact while K products, each
// at most 2^14 in magnitude, fit 32 bits, that is for K up to 131,071 (2^31 / 2^14 - 1) whatever the elements, and for
// K up to 133,144 where none is -128.
//   a          int8 [M, K], or [K, M] with transpose_a
//   b          int8 [K, N], or [N, K] with transpose_b
//   out        int32 [M, N]
//   workspace  uint8, on CUDA on a 16-byte boundary, at least igemm_workspace(a, transpose_a, b, transpose_b) elements
// a, b and out may each have one more dimension in front, of one size: the products of a batch. Any size may be 0, with
// K 0 all sums are; each is below 2^31.
QBITS_API void igemm(const TensorView& a, bool transpose_a, const TensorView& b, bool transpose_b,
                     const TensorView& out, const TensorView& workspace, Stream stream = {});

// What a product of codes stands for (bitsandbytes' int8_mm_dequant):
//   out[m, n] = b (a dots[m, n]) + bias[n],  a = row_scales[m] / 127, b = column_scales[n] / 127
// rounded as in linear_int8, which without outliers gives the same bits as igemm and this, as long as sums fit 32 bits.
//   dots           int32 [.., N], M rows
//   row_scales     float32, one for each row
//   column_scales  float32 [N]
//   bias           [N] in out's dtype, or absent
//   out            float, as dots
QBITS_API void dequantize_int8_product(const TensorView& dots, const TensorView& row_scales,
                                       const TensorView& column_scales, const std::optional<TensorView>& bias,
                                       const TensorView& out, Stream stream = {});

}  // namespace qbits
