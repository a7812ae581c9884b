#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "qbits/export.h"
#include "qbits/format.h"
#include "qbits/tensor.h"

// Products with 4-bit weights, which are read in their packed form. Accumulation is in float32. Tensor cores multiply
// bfloat16 and float16 from compute capability 8.0 on; those of 7.5, which have no bfloat16, multiply float16, and
// bfloat16 is computed in float32 there, as float32 is everywhere. What tensor cores read of a weight is rounded to x's
// dtype (docs/numerics.md).
// The conventions of quantize.h hold: contiguous, one device, errors before writes, caller allocates.
// A product, or gradient, that is captured into a CUDA graph directly after another one may read its inputs while that
// other one still runs, unless that writes them (compute capability 9.0 and later). Do not edit such a graph so that
// its inputs are written between the two, or by the first at an address it had not; nor delete nodes while it is
// captured.

namespace qbits {

// Bytes of scratch memory linear_4bit needs for `m` rows of x in dtype `x`; 0 is possible.
QBITS_API int64_t linear_4bit_workspace(const Weight4bit& weight, int64_t m, DType x);

// out = x W^T + bias, W being the dequantization of `weight`.
//   x      float [.., K], M rows; M may be 0
//   weight N = rows, K = cols, any N and K, blocks may straddle rows
//   bias   [N] in x's dtype, or absent
//   out    [.., N] in x's dtype
//   workspace  uint8, on CUDA on a 16-byte boundary, at least linear_4bit_workspace(weight, M, x.dtype) elements
QBITS_API void linear_4bit(const TensorView& x, const Weight4bit& weight, const std::optional<TensorView>& bias,
                           const TensorView& out, const TensorView& workspace, Stream stream = {});

// A CUDA device, which need not be in this machine, as far as the choice among kernels depends on it.
struct CudaDevice {
  int compute_capability = 0;  // 10 * major + minor: 90 for 9.0
  int sm_count = 0;
};

// Which kernel linear_4bit takes and in what shape, in one line for people to read; its words may change.
// Without `device`, on this CPU. Assumes tensors on 16-byte boundaries, as allocators give them, and scales that are
// not double-quantized.
//   "mma 8x32x512, chunk 64, 6 stages, 138240 B shared, 128 blocks (smallest tile that holds m)"
//   "cpu avx2, few rows of x, 128 tiles 1x32, 2 threads"
//   format      a 4-bit one; block_size one of its own
//   rows, cols  N and K of the weight, and m the rows of x; 0 is possible
// Throws InvalidArgument for a size, format or device there is not, InvalidType for the dtype of x, Unsupported for
// more output than one CUDA launch covers.
QBITS_API std::string linear_4bit_plan(const Format& format, int64_t rows, int64_t cols, int64_t block_size, int64_t m,
                                       DType x, const std::optional<CudaDevice>& device = {});

// Bytes of scratch memory linear_4bit_grad_x needs for `m` rows of grad in dtype `grad`.
QBITS_API int64_t linear_4bit_grad_x_workspace(const Weight4bit& weight, int64_t m, DType grad);

// The gradient of linear_4bit for x: out = grad W.
//   grad  float [.., N], M rows
//   out   [.., K] in grad's dtype
//   workspace  uint8, on CUDA on a 16-byte boundary, at least linear_4bit_grad_x_workspace(weight, M, grad.dtype)
//   elements
QBITS_API void linear_4bit_grad_x(const TensorView& grad, const Weight4bit& weight, const TensorView& out,
                                  const TensorView& workspace, Stream stream = {});

// Bytes of scratch memory grouped_linear_4bit needs for `m` rows of x in dtype `x`; 0 is possible.
QBITS_API int64_t grouped_linear_4bit_workspace(const Weight4bit& weight, int64_t experts, int64_t m, DType x);

// The products of a mixture of experts: out[t] = x[t] W[e]^T + bias[e] for rows t from offsets[e] to offsets[e + 1].
// On CUDA the kernel and its launch follow from sizes alone: nothing synchronises, and a captured graph may be
// replayed with other offsets.
//   x        float [M, K], its rows sorted by expert; M from 0 to 2^30
//   offsets  int32 [E + 1], ascending, from 0 to M. Rows of out before the first and from the last on are not
//            written. On the CPU other offsets are refused; on CUDA, where checking would synchronise, each is taken
//            as the nearest of 0 to M, an expert that ends before it begins has no rows, and what several experts
//            claim is unspecified.
//   weight   E * N = rows: a tensor [E, N, K], quantized as a whole; any N and K, blocks may straddle experts
//   bias     [E, N] in x's dtype, or absent
//   out      [M, N] in x's dtype
//   workspace  uint8, on CUDA on a 16-byte boundary, at least grouped_linear_4bit_workspace(weight, E, M, x.dtype)
//   elements
QBITS_API void grouped_linear_4bit(const TensorView& x, const TensorView& offsets, const Weight4bit& weight,
                                   const std::optional<TensorView>& bias, const TensorView& out,
                                   const TensorView& workspace, Stream stream = {});

// Which kernel grouped_linear_4bit takes, as linear_4bit_plan says of linear_4bit; `rows` is N, that of one expert.
QBITS_API std::string grouped_linear_4bit_plan(const Format& format, int64_t experts, int64_t rows, int64_t cols,
                                               int64_t block_size, int64_t m, DType x,
                                               const std::optional<CudaDevice>& device = {});

// Bytes of scratch memory grouped_linear_4bit_grad_x needs for `m` rows of grad in dtype `grad`.
QBITS_API int64_t grouped_linear_4bit_grad_x_workspace(const Weight4bit& weight, int64_t experts, int64_t m,
                                                       DType grad);

// The gradient of grouped_linear_4bit for x: out[t] = grad[t] W[e] for rows t from offsets[e] to offsets[e + 1].
//   grad     float [M, N], its rows sorted by expert
//   offsets  as above
//   out      [M, K] in grad's dtype
//   workspace  uint8, on CUDA on a 16-byte boundary, at least grouped_linear_4bit_grad_x_workspace(weight, E, M,
//   grad.dtype) elements
QBITS_API void grouped_linear_4bit_grad_x(const TensorView& grad, const TensorView& offsets, const Weight4bit& weight,
                                          const TensorView& out, const TensorView& workspace, Stream stream = {});

// Row gather: out[t] = W[indices[t]], dequantized.
//   indices  int64 or int32, T elements. On the CPU an index outside [0, N) is refused (InvalidIndex); on CUDA, where
//            checking would synchronise, its row is NaN.
//   out      float [.., K], T rows
QBITS_API void embedding_4bit(const TensorView& indices, const Weight4bit& weight, const TensorView& out,
                              Stream stream = {});

}  // namespace qbits
