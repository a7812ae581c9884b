#pragma once

#include "cpu/isa.h"
#include "ops/absmax.h"

// Reconstructs scales of second-level blocks [begin, end).
QBITS_PER_ISA(void, dequantize_absmax_blocks, const DequantizeAbsmaxArgs& args, int64_t begin, int64_t end)
