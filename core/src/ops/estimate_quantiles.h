#pragma once

#include "ops/args.h"

namespace qbits {

struct EstimateQuantilesArgs {
  const void* x;
  DType x_dtype;
  int64_t n;
  double offset;
  float* quantiles;
  int64_t num_quantiles;
  void* workspace;
  Device device;
};

namespace cpu {
int64_t estimate_quantiles_workspace(int64_t n);
void estimate_quantiles(const EstimateQuantilesArgs& args);
}  // namespace cpu
namespace cuda {
int64_t estimate_quantiles_workspace(int64_t n);
void estimate_quantiles(const EstimateQuantilesArgs& args, Stream stream);
}  // namespace cuda

}  // namespace qbits
