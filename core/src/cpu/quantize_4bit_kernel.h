#pragma once

#include "cpu/isa.h"
#include "ops/encoder16.h"
#include "ops/quantize_4bit.h"

// Quantizes blocks [begin, end).
QBITS_PER_ISA(void, quantize_4bit_blocks, const Quantize4bitArgs& args, const Encoder16& encoder, int64_t begin,
              int64_t end)
