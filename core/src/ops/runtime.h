#pragma once

#include <string>
#include <vector>

// Back-end facts behind the public runtime.h, defined once per build in cuda/ or no_cuda/.

namespace qbits::cuda {
std::vector<std::string> archs();
std::string unavailable_reason();
int driver_version();
int runtime_version();
}  // namespace qbits::cuda
