#pragma once

#include "cpu/isa.h"
#include "ops/blockwise.h"

// Dequantizes blocks [begin, end); `stream` lets the output bypass the caches.
QBITS_PER_ISA(void, dequantize_blockwise_blocks, const DequantizeBlockwiseArgs& args, int64_t begin, int64_t end,
              bool stream)
