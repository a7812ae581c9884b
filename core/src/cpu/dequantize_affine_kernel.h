#pragma once

#include "cpu/isa.h"
#include "ops/affine.h"

// Dequantizes groups [begin, end), counted through all rows; `stream` lets the output bypass the caches.
QBITS_PER_ISA(void, dequantize_affine_groups, const DequantizeAffineArgs& args, int64_t begin, int64_t end, bool stream)
