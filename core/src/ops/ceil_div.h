#pragma once

#include <cstdint>

namespace qbits {

// ceil(a / b) for a >= 0 and b > 0, however near a is to 2^63.
constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

}  // namespace qbits
