#pragma once

#include <cuda.h>

#include "cuda/launch.h"
#include "ops/linear_4bit.h"
#include "ops/linear_4bit_wgmma_plan.h"

// The host's side of the wgmma kernels.

namespace qbits::cuda {

struct MatrixMap {
  const void* data;
  int64_t rows;
  int64_t columns;
  int64_t row_bytes;  // a multiple of 16
  int box_rows;
  int box_columns;
};

// Tensor maps of row-major matrices, elements outside read as 0. `encode_codes`: bytes; boxes of lines of 32, 64 or
// 128 bytes. `encode_tile`: bfloat16 or float16; boxes of 128-byte lines. Both swizzled to the width of a line.
CUtensorMap encode_codes(const MatrixMap& matrix);
CUtensorMap encode_tile(const MatrixMap& matrix, DType dtype);

// What a call's x [rows, depth] (or grad), its weight and the plan say of the kernel's arguments.
struct WgmmaArgs;
// `of_experts`: tiles of x may begin at any row.
void set_wgmma_x(WgmmaArgs& wgmma, const void* x, int64_t rows, int64_t depth, DType dtype, const WgmmaPlan& plan,
                 bool of_experts);
void set_wgmma_weight(WgmmaArgs& wgmma, const Weight4bitArgs& weight, DType dtype, const WgmmaPlan& plan,
                      void* workspace, bool transposed);

void linear_4bit_grad_x_wgmma(const Linear4bitGradXArgs& args, const WgmmaPlan& plan, Stream stream);
void linear_4bit_wgmma(const Linear4bitArgs& args, const WgmmaPlan& plan, Stream stream);

}  // namespace qbits::cuda
