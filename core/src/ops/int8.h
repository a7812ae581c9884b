#pragma once

#include <cstdint>

#include "qbits/tensor.h"

// What back ends receive of the ops of int8.h: validated, and with an output that is not empty.

namespace qbits {

// Largest code, and what a scale is divided by.
inline constexpr float kInt8Max = 127.0F;

// Depth up to which sums of products of two codes fit 32 bits: 2^31 / 2^14.
inline constexpr int64_t kInt8ExactDepth = 1 << 17;

struct QuantizeInt8RowwiseArgs {
  const void* x;  // [rows, cols]
  DType x_dtype;
  int64_t rows;
  int64_t cols;
  float threshold;  // 0: no outliers, and the two pointers are null
  int8_t* codes;
  float* scales;
  int32_t* outlier_columns;  // [cols], ascending
  int32_t* outlier_count;
  void* workspace;
  Device device;
};

struct QuantizeInt8ColwiseArgs {
  const void* x;  // [rows, cols], of which rows may be 0
  DType x_dtype;
  int64_t rows;
  int64_t cols;
  float threshold;  // 0: no outliers
  int8_t* codes;
  float* scales;  // [cols]
  void* workspace;
  Device device;
};

struct DequantizeInt8RowwiseArgs {
  const int8_t* codes;  // [rows, cols]
  const float* scales;
  int64_t rows;
  int64_t cols;
  void* out;
  DType out_dtype;
  Device device;
};

struct LinearInt8Args {
  const void* x;  // [m, k]
  DType dtype;    // of x, bias and out
  int64_t m;
  int64_t n;
  int64_t k;
  const int8_t* codes;  // [n, k]
  const float* scales;  // [n]
  const void* bias;     // [n] or null
  float threshold;
  void* out;  // [m, n]
  void* workspace;
  Device device;
};

struct LinearInt8WeightOnlyArgs {
  const void* x;  // [m, k]
  DType dtype;    // of x, bias and out
  int64_t m;
  int64_t n;
  int64_t k;
  const int8_t* codes;  // [n, k]
  const float* scales;  // [n]
  const void* bias;     // [n] or null
  void* out;            // [m, n]
  void* workspace;
  Device device;
};

// out[b, i, j] = sum over k of A[i, k] B[k, j] modulo 2^32. For the size of the workspace `out` and `workspace` are
// null.
struct IgemmArgs {
  const int8_t* a;  // [batch, m, k]; transpose_a: [batch, k, m]
  const int8_t* b;  // [batch, k, n]; transpose_b: [batch, n, k]
  int32_t* out;     // [batch, m, n]
  int64_t batch;
  int64_t m;
  int64_t n;
  int64_t k;  // may be 0
  bool transpose_a;
  bool transpose_b;
  void* workspace;
  Device device;
};

struct DequantizeInt8ProductArgs {
  const int32_t* dots;  // [m, n]
  const float* row_scales;
  const float* column_scales;
  const void* bias;  // [n] or null
  int64_t m;
  int64_t n;
  void* out;
  DType dtype;  // of bias and out
  Device device;
};

namespace cpu {
int64_t quantize_int8_rowwise_workspace(int64_t rows, int64_t cols, float threshold);
void quantize_int8_rowwise(const QuantizeInt8RowwiseArgs& args);
int64_t quantize_int8_colwise_workspace(int64_t rows, int64_t cols);
void quantize_int8_colwise(const QuantizeInt8ColwiseArgs& args);
void dequantize_int8_rowwise(const DequantizeInt8RowwiseArgs& args);
int64_t linear_int8_workspace(int64_t m, int64_t n, int64_t k, DType x, float threshold);
void linear_int8(const LinearInt8Args& args);
int64_t linear_int8_weight_only_workspace(int64_t m, int64_t n, int64_t k, DType x);
void linear_int8_weight_only(const LinearInt8WeightOnlyArgs& args);
int64_t igemm_workspace(const IgemmArgs& args);
void igemm(const IgemmArgs& args);
void dequantize_int8_product(const DequantizeInt8ProductArgs& args);
}  // namespace cpu
namespace cuda {
int64_t quantize_int8_rowwise_workspace(int64_t rows, int64_t cols, float threshold, Device device);
void quantize_int8_rowwise(const QuantizeInt8RowwiseArgs& args, Stream stream);
int64_t quantize_int8_colwise_workspace(int64_t rows, int64_t cols, Device device);
void quantize_int8_colwise(const QuantizeInt8ColwiseArgs& args, Stream stream);
void dequantize_int8_rowwise(const DequantizeInt8RowwiseArgs& args, Stream stream);
int64_t linear_int8_workspace(int64_t m, int64_t n, int64_t k, DType x, float threshold, Device device);
void linear_int8(const LinearInt8Args& args, Stream stream);
int64_t linear_int8_weight_only_workspace(int64_t m, int64_t n, int64_t k, DType x, Device device);
void linear_int8_weight_only(const LinearInt8WeightOnlyArgs& args, Stream stream);
int64_t igemm_workspace(const IgemmArgs& args);
void igemm(const IgemmArgs& args, Stream stream);
void dequantize_int8_product(const DequantizeInt8ProductArgs& args, Stream stream);
}  // namespace cuda

}  // namespace qbits
