#pragma once

#include "cpu/isa.h"
#include "ops/int8.h"

namespace qbits::cpu {

// A part of the matrix.
struct Int8Part {
  int64_t row0, row1;
  int64_t col0, col1;
};

}  // namespace qbits::cpu

// tops[col - col0] = bits of the largest |x| of each column of the part that is no outlier.
QBITS_PER_ISA(void, scan_int8_columns, const QuantizeInt8ColwiseArgs& args, const Int8Part& part, float* tops)

// Codes of the part by the scales.
QBITS_PER_ISA(void, code_int8_columns, const QuantizeInt8ColwiseArgs& args, const Int8Part& part)
