#pragma once

#include <string_view>

#include "qbits/tensor.h"

// What is asked of the driver once and not in every call.

namespace qbits::cuda {

struct DeviceFacts {
  int compute_capability;  // 10 * major + minor
  int sm_count;
  int shared_bytes;  // the most that a block may have
};

const DeviceFacts& device_facts(Device device, std::string_view op);

// Lets `kernel`, a __global__ function, take all the dynamic shared memory that a block of the current device may
// have: one value whoever calls, so that threads cannot take from each other what they are about to use.
void allow_shared_memory(const void* kernel, std::string_view op);

}  // namespace qbits::cuda
