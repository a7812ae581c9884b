#pragma once

#include <cstdint>

#include "qbits/export.h"
#include "qbits/format.h"
#include "qbits/tensor.h"

// Quantization and dequantization. Common to all functions here:
// - every tensor is contiguous and all lie on one device; outputs are allocated by the caller;
// - "float" means float32, bfloat16 or float16;
// - CPU and CUDA write identical bits;
// - a block that holds a NaN or an infinity gets a NaN scale and dequantizes to NaN throughout;
// - an empty tensor is accepted and does nothing (estimate_quantiles refuses it: nothing has no quantiles);
// - Error (qbits/error.h) is thrown before anything is written: InvalidType for a dtype, InvalidArgument for a
//   shape, size or device, Unsupported for a CUDA tensor in a build without CUDA.

namespace qbits {

// Rounds each element to the nearest entry of a 16-entry codebook after division by its block's
// absmax (QLoRA, arXiv 2305.14314). The quotient is rounded once to float32; ties go to the lower
// code of nf4 and the smaller magnitude of fp4. A block of zeros gets absmax 0 and codes of zero.
//   x       float, any shape, n elements in row-major order
//   format  nf4 or fp4
//   block_size  one of format.block_sizes
//   codes   uint8, ceil(n / 2) elements, first element of a pair in the high nibble
//   absmax  float32, ceil(n / block_size) elements
QBITS_API void quantize_4bit(const TensorView& x, const Format& format, int64_t block_size, const TensorView& codes,
                             const TensorView& absmax, Stream stream = {});

// out[i] = codebook[code[i]] * absmax[i / block_size], computed in float32 and rounded once to out's
// dtype. `absmax` may be double-quantized. Shapes as in quantize_4bit; out is float, any shape.
QBITS_API void dequantize_4bit(const TensorView& codes, const Absmax& absmax, const Format& format, int64_t block_size,
                               const TensorView& out, Stream stream = {});

// Double quantization of 4-bit scales: offset = mean(absmax), summed in a fixed order in float64 and
// rounded to float32; then absmax - offset is quantized block-wise with `nested_code` in blocks of 256.
//   absmax         float32[blocks]
//   nested_code    float32[256], ascending (the signed dynamic map)
//   values         uint8[blocks]
//   nested_absmax  float32[ceil(blocks / 256)]
//   offset         float32, one element
// A NaN in absmax makes the offset, and so every reconstructed scale, NaN.
QBITS_API void quantize_absmax(const TensorView& absmax, const TensorView& nested_code, const TensorView& values,
                               const TensorView& nested_absmax, const TensorView& offset, Stream stream = {});

// Reconstructs float32[blocks] from a double-quantized `absmax`, as struct Absmax defines.
QBITS_API void dequantize_absmax(const Absmax& absmax, const TensorView& out, Stream stream = {});

// Linear quantization q = clamp(round(x / s) + z, 0, 2^bits - 1), r = s (q - z) (Jacob et al.,
// arXiv 1712.05877). Each group's range is widened to hold 0, so 0.0 comes back exactly:
// s = max / (2^bits - 1) - min / (2^bits - 1), z = round(-min / s), with halves to even; s is first
// rounded to the dtype of `scales`, and codes are computed with the rounded value.
//   x       float [.., cols]; groups run along the last dimension
//   format  int4 or int8_affine
//   group_size  one of format.block_sizes, or 0 for whole rows
//   codes   uint8: ceil(n / 2) elements packed like quantize_4bit (int4), n elements (int8_affine)
//   scales, zeros  float, rows * ceil(cols / group_size) elements, same dtype
QBITS_API void quantize_affine(const TensorView& x, const Format& format, int64_t group_size, const TensorView& codes,
                               const TensorView& scales, const TensorView& zeros, Stream stream = {});

// out = (code - zero) * scale in float32, rounded once to out's dtype. The zero need not be an
// integer (HQQ). Shapes as in quantize_affine; out is float [.., cols].
QBITS_API void dequantize_affine(const TensorView& codes, const TensorView& scales, const TensorView& zeros,
                                 const Format& format, int64_t group_size, const TensorView& out, Stream stream = {});

// Rounds x / absmax to the nearest of 256 values, block by block (arXiv 2110.02861). Exact midpoints
// go to the even code, as bitsandbytes' CUDA kernel decides them.
//   x           float, n elements
//   code        float32[256], ascending
//   block_size  16 to 4096, a power of two
//   codes       uint8, n elements
//   absmax      float32, ceil(n / block_size) elements
QBITS_API void quantize_blockwise(const TensorView& x, const TensorView& code, int64_t block_size,
                                  const TensorView& codes, const TensorView& absmax, Stream stream = {});

// out[i] = code[codes[i]] * absmax[i / block_size] in float32, rounded once to out's dtype.
QBITS_API void dequantize_blockwise(const TensorView& codes, const TensorView& absmax, const TensorView& code,
                                    int64_t block_size, const TensorView& out, Stream stream = {});

// Bytes of scratch memory estimate_quantiles needs on the device of `x`.
QBITS_API int64_t estimate_quantiles_workspace(const TensorView& x);

// quantiles[i] is a value of rank offset + i (1 - 2 offset) / (q - 1) of x, ascending, exact to within
// 0.5 % of rank for any n (q = 1 gives rank 0.5). NaN elements are ignored; if nothing is left every
// quantile is NaN.
//   x          float, n > 0 elements
//   offset     in [0, 0.5)
//   quantiles  float32, q in 1..65536 elements
//   workspace  uint8, on CUDA on a 16-byte boundary, at least estimate_quantiles_workspace(x) elements
QBITS_API void estimate_quantiles(const TensorView& x, double offset, const TensorView& quantiles,
                                  const TensorView& workspace, Stream stream = {});

}  // namespace qbits
