#pragma once

#include "cpu/isa.h"
#include "ops/int8.h"

// out of rows [begin, end); `stream` lets it bypass the caches.
QBITS_PER_ISA(void, dequantize_product_rows, const DequantizeInt8ProductArgs& args, int64_t begin, int64_t end,
              bool stream)
