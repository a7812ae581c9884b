#pragma once

#include "cpu/isa.h"
#include "ops/int8.h"

// Dequantizes rows [begin, end); `stream` lets the output bypass the caches.
QBITS_PER_ISA(void, dequantize_int8_rows, const DequantizeInt8RowwiseArgs& args, int64_t begin, int64_t end,
              bool stream)
