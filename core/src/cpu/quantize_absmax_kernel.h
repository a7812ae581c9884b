#pragma once

#include "cpu/encoder256.h"
#include "cpu/isa.h"
#include "ops/absmax.h"

// The sum of one chunk of at most kMeanChunk elements, in the order of ops/absmax.h.
QBITS_PER_ISA(double, absmax_chunk_sum, const float* absmax, int64_t n)

// Quantizes second-level blocks [begin, end) of absmax - offset.
QBITS_PER_ISA(void, quantize_absmax_blocks, const QuantizeAbsmaxArgs& args, const Encoder256& encoder, float offset,
              int64_t begin, int64_t end)
