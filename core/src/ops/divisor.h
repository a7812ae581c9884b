#pragma once

#include <cstdint>

namespace qbits {

// Divides numbers of at least 0 by one of at least 1, by a multiplication: GPUs have no instruction for it, and what a
// compiler makes of one takes some 150 clocks, which count where a kernel starts, ends or goes to its next tile.
struct Divisor {
  uint32_t by;
  uint32_t inverse;  // of 2^32, rounded down

  explicit constexpr Divisor(int of = 1)
      : by(static_cast<uint32_t>(of)),
        inverse(of == 1 ? ~uint32_t{0} : static_cast<uint32_t>((uint64_t{1} << 32) / by)) {}

  struct Result {
    int quotient;
    int rest;
  };

  constexpr Result divide(int n) const {
    const uint32_t number = static_cast<uint32_t>(n);
    uint32_t quotient = static_cast<uint32_t>(uint64_t{number} * inverse >> 32);  // or one less than it is
    uint32_t rest = number - quotient * by;
    if (rest >= by) {
      ++quotient;
      rest -= by;
    }
    return {static_cast<int>(quotient), static_cast<int>(rest)};
  }
};

}  // namespace qbits
