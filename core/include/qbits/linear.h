#pragma once

#include <cstdint>
#include <optional>

#include "qbits/export.h"
#include "qbits/format.h"
#include "qbits/tensor.h"

// Products with 4-bit weights, which are read in their packed form. Accumulation is in float32.
// The conventions of quantize.h hold: contiguous, one device, errors before writes, caller allocates.

namespace qbits {

// Bytes of scratch memory linear_4bit needs for `m` rows of x in dtype `x`; 0 is possible.
QBITS_API int64_t linear_4bit_workspace(const Weight4bit& weight, int64_t m, DType x);

// out = x W^T + bias, W being the float32 dequantization of `weight`.
//   x      float [.., K], M rows; M may be 0
//   weight N = rows, K = cols, any N and K, blocks may straddle rows
//   bias   [N] in x's dtype, or absent
//   out    [.., N] in x's dtype
//   workspace  uint8, at least linear_4bit_workspace(weight, M, x.dtype) elements
QBITS_API void linear_4bit(const TensorView& x, const Weight4bit& weight, const std::optional<TensorView>& bias,
                           const TensorView& out, const TensorView& workspace, Stream stream = {});

// Bytes of scratch memory linear_4bit_grad_x needs for `m` rows of grad in dtype `grad`.
QBITS_API int64_t linear_4bit_grad_x_workspace(const Weight4bit& weight, int64_t m, DType grad);

// The gradient of linear_4bit for x: out = grad W.
//   grad  float [.., N], M rows
//   out   [.., K] in grad's dtype
QBITS_API void linear_4bit_grad_x(const TensorView& grad, const Weight4bit& weight, const TensorView& out,
                                  const TensorView& workspace, Stream stream = {});

// Row gather: out[t] = W[indices[t]], dequantized.
//   indices  int64 or int32, T elements. On the CPU an index outside [0, N) is refused; on CUDA, where
//            checking would synchronise, its row is NaN.
//   out      float [.., K], T rows
QBITS_API void embedding_4bit(const TensorView& indices, const Weight4bit& weight, const TensorView& out,
                              Stream stream = {});

}  // namespace qbits
