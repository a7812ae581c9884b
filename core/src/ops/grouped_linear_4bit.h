#pragma once

#include <string>
#include <string_view>

#include "ops/args.h"

namespace qbits {

// Expert e has rows offsets[e] to offsets[e + 1] of x and rows e * n() on of the weight.
struct GroupedLinear4bitArgs {
  const void* x;  // [m, weight.cols]
  DType dtype;    // of x, bias and out
  int64_t m;
  const int32_t* offsets;  // [experts + 1]
  int64_t experts;
  Weight4bitArgs weight;
  const void* bias;  // [experts, n()] or null
  void* out;         // [m, n()]
  void* workspace;
  Device device;

  int64_t n() const { return weight.rows / experts; }
};

struct GroupedLinear4bitGradXArgs {
  const void* grad;  // [m, n()]
  DType dtype;       // of grad and out
  int64_t m;
  const int32_t* offsets;  // [experts + 1]
  int64_t experts;
  Weight4bitArgs weight;
  void* out;  // [m, weight.cols]
  void* workspace;
  Device device;

  int64_t n() const { return weight.rows / experts; }
};

// The checks both ops share.
// The number of experts, by the number of offsets.
int64_t check_offsets(std::string_view op, const TensorView& offsets, Device device);
// Rows of one expert.
int64_t check_experts(std::string_view op, int64_t experts, int64_t weight_rows);
// Ascending from 0 to m, where the CPU can read them: on CUDA looking would synchronise.
void check_offset_values(std::string_view op, const TensorView& offsets, int64_t m);
// That m rows of `columns` elements can be counted.
void check_rows(std::string_view op, int64_t m, int64_t columns);

namespace cpu {
int64_t grouped_linear_4bit_workspace(const Weight4bitArgs& weight, int64_t experts, int64_t m, DType x);
void grouped_linear_4bit(const GroupedLinear4bitArgs& args);
std::string grouped_linear_4bit_plan(int64_t experts, int64_t rows, int64_t cols, int64_t m);
int64_t grouped_linear_4bit_grad_x_workspace(const Weight4bitArgs& weight, int64_t experts, int64_t m, DType grad);
void grouped_linear_4bit_grad_x(const GroupedLinear4bitGradXArgs& args);
}  // namespace cpu
namespace cuda {
int64_t grouped_linear_4bit_workspace(const Weight4bitArgs& weight, int64_t experts, int64_t m, DType x, Device device);
void grouped_linear_4bit(const GroupedLinear4bitArgs& args, Stream stream);
int64_t grouped_linear_4bit_grad_x_workspace(const Weight4bitArgs& weight, int64_t experts, int64_t m, DType grad,
                                             Device device);
void grouped_linear_4bit_grad_x(const GroupedLinear4bitGradXArgs& args, Stream stream);
}  // namespace cuda

}  // namespace qbits
