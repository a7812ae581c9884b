#pragma once

#include <cstdint>

namespace qbits::cpu {

// Prepares an output that all of an op's threads are about to fill; true if it is too large for the caches, so
// that stores had better bypass them. Fresh memory is then asked for in huge pages: faulting it in by 4 KiB takes
// several times as long as dequantizing into it.
bool prepare_output(void* data, int64_t bytes);

}  // namespace qbits::cpu
