#pragma once

#include "cuda/quantize_int8_rowwise.h"
#include "ops/int8.h"
#include "ops/linear_int8_plan.h"

namespace qbits::cuda {

// x of a call after it has been quantized, in the workspace.
struct QuantizedX {
  const int8_t* codes;  // [m, k], rows linear_int8_pitch(k) apart
  const float* scales;
  const int32_t* columns;  // of outliers; null without a threshold
  const int32_t* count;
  void* values;     // [m, kOutlierValues]: x in the first of them
  Int8Marks marks;  // where the kernel lists columns: what there is instead of the last three
};

LinearInt8Problem problem_of(const LinearInt8Args& args);

// linear_int8 by one plan, with the workspace of the call.
void run(const LinearInt8Args& args, const LinearInt8Plan& plan, Stream stream);

void linear_int8_simt(const LinearInt8Args& args, const QuantizedX& x, const LinearInt8Plan& plan, Stream stream);
void linear_int8_mma(const LinearInt8Args& args, const QuantizedX& x, const LinearInt8Plan& plan, Stream stream);
void linear_int8_wgmma(const LinearInt8Args& args, const QuantizedX& x, const LinearInt8Plan& plan, Stream stream);

}  // namespace qbits::cuda
