#pragma once

#include <cstdint>

#include "qbits/format.h"

namespace qbits {

// A 16-entry codebook prepared for encoding by comparison alone. Plain data: kernels take it by value.
struct Encoder16 {
  float values[16];      // by code
  float thresholds[15];  // ascending; the rank of q is the number of thresholds it exceeds (strictly)
  uint8_t codes[16];     // code by rank
  uint8_t zero_code;     // the code of 0.0, also for blocks without a usable scale
};

// Derives thresholds from the codebook: each is the largest float that still belongs to the lower
// neighbour, so that comparing a float32 quotient decides the nearest entry exactly, ties included.
Encoder16 make_encoder16(const Format& format);

}  // namespace qbits
