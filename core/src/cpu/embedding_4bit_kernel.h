#pragma once

#include "cpu/absmax.h"
#include "cpu/isa.h"
#include "ops/embedding_4bit.h"

// Gathers indices [begin, end).
QBITS_PER_ISA(void, embedding_4bit_rows, const Embedding4bitArgs& args, int64_t begin, int64_t end)
