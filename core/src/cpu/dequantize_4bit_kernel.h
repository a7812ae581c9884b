#pragma once

#include "cpu/isa.h"
#include "ops/dequantize_4bit.h"

// Dequantizes blocks [begin, end), with absmax[i] the scale of block begin + i; `stream` lets the output
// bypass the caches.
QBITS_PER_ISA(void, dequantize_4bit_blocks, const Dequantize4bitArgs& args, const float* absmax, int64_t begin,
              int64_t end, bool stream)
