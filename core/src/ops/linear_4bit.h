#pragma once

#include <string>

#include "ops/args.h"

namespace qbits {

struct Linear4bitArgs {
  const void* x;  // [m, weight.cols]
  DType dtype;    // of x, bias and out
  int64_t m;
  Weight4bitArgs weight;
  const void* bias;  // [weight.rows] or null
  void* out;         // [m, weight.rows]
  void* workspace;
  Device device;
};

struct Linear4bitGradXArgs {
  const void* grad;  // [m, weight.rows]
  DType dtype;       // of grad and out
  int64_t m;
  Weight4bitArgs weight;
  void* out;  // [m, weight.cols]
  void* workspace;
  Device device;
};

namespace cpu {
int64_t linear_4bit_workspace(const Weight4bitArgs& weight, int64_t m, DType x);
void linear_4bit(const Linear4bitArgs& args);
std::string linear_4bit_plan(const Weight4bitArgs& weight, int64_t m);
int64_t linear_4bit_grad_x_workspace(const Weight4bitArgs& weight, int64_t m, DType grad);
void linear_4bit_grad_x(const Linear4bitGradXArgs& args);
}  // namespace cpu
namespace cuda {
int64_t linear_4bit_workspace(const Weight4bitArgs& weight, int64_t m, DType x, Device device);
void linear_4bit(const Linear4bitArgs& args, Stream stream);
int64_t linear_4bit_grad_x_workspace(const Weight4bitArgs& weight, int64_t m, DType grad, Device device);
void linear_4bit_grad_x(const Linear4bitGradXArgs& args, Stream stream);
}  // namespace cuda

}  // namespace qbits
