#pragma once

#include "cpu/encoder256.h"
#include "cpu/isa.h"
#include "ops/blockwise.h"

// Quantizes blocks [begin, end).
QBITS_PER_ISA(void, quantize_blockwise_blocks, const QuantizeBlockwiseArgs& args, const Encoder256& encoder,
              int64_t begin, int64_t end)
