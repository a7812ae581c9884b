#pragma once

#include <cmath>

#include "cpu/isa.h"
#include "ops/affine.h"

// Quantizes groups [begin, end), counted through all rows. Groups that share a byte of codes must be in one call.
QBITS_PER_ISA(void, quantize_affine_groups, const QuantizeAffineArgs& args, int64_t begin, int64_t end)
