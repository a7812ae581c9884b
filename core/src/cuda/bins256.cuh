#pragma once

#include <bit>
#include <cstdint>

#include "ops/blockwise.h"

namespace qbits::cuda {

// A table that ranks quotients among up to 255 ascending thresholds: the rank is the number of thresholds below. The
// sign, the exponent and kMantissaBits of the mantissa of a quotient choose a bin, which knows its threshold; it must
// hold one at most. Bins reach kOctaves powers of two down from 1, the last of them standing for all that is smaller.
template <int kMantissaBits, int kOctaves, bool kSigned = true>
struct Bins256 {
  // Magnitudes are scaled so that those of the last octave are subnormal.
  static constexpr float kScale = std::bit_cast<float>(kOctaves << 23);
  static constexpr int kShift = 23 - kMantissaBits;
  static constexpr int kBins = (kOctaves << kMantissaBits) + 1;  // of a sign: magnitudes up to 1
  static constexpr int kZero = kSigned ? kBins : 0;              // the bin of zero
  static constexpr int kRest = 0xffffff;                         // below the rank in a sum

  // Of each bin, such that the sum with a position has the rank in its top byte.
  uint32_t entries[kZero + kBins];

  // The position of q: an integer that rises with it. Numbers next to zero are rounded away from it, not to it.
  __device__ static int position(float q, float scale) {
    const int magnitude = __float_as_int(__fmul_ru(fabsf(q), scale));
    return kSigned ? magnitude ^ __float_as_int(q) >> 31 : magnitude;
  }
  __device__ static int bin_of(int position) { return kZero + (position >> kShift); }

  // What thread t of 256 fills: the bins behind the one of threshold t - 1, up to its own threshold's. The thread after
  // the last threshold fills the bins behind it.
  struct Part {
    int position;  // of the threshold
    int first;
    int last;
  };

  __device__ static Part part(const float (&thresholds)[256], int t, int count) {
    const int own = t < count ? position(thresholds[t], kScale) : (kBins << kShift) - 1;
    return {.position = own,
            .first = t > 0 ? bin_of(position(thresholds[t - 1], kScale)) + 1 : 0,
            .last = t <= count ? bin_of(own) : -1};
  }

  __device__ void fill(int t, const Part& part) {
    for (int lane = 0; lane < 32; ++lane) {
      const uint32_t below = static_cast<uint32_t>(t / 32 * 32 + lane) << 24;
      const int end = __shfl_sync(0xffffffffU, part.last, lane);
      const int threshold = __shfl_sync(0xffffffffU, part.position, lane);
      for (int bin = __shfl_sync(0xffffffffU, part.first, lane) + t % 32; bin <= end; bin += 32) {
        entries[bin] = below - static_cast<uint32_t>(bin < end ? (bin - kZero) << kShift : threshold - kRest);
      }
    }
  }

  // The rank of q, whose magnitude is at most 1, in the top byte; `scale` is kScale, or kScale over a factor of q.
  __device__ uint32_t ranked(float q, float scale) const {
    const int at = position(q, scale);
    const char* zero = reinterpret_cast<const char*>(entries + kZero);
    return *reinterpret_cast<const uint32_t*>(zero + (at >> (kShift - 2) & ~3)) + static_cast<uint32_t>(at);
  }
};

// The top bytes of four words, in order.
__device__ inline uint32_t top_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0073), __byte_perm(c, d, 0x0073), 0x5410);
}

}  // namespace qbits::cuda
