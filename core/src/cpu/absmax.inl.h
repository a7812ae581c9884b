#pragma once

// Included inside an instruction set's namespace, after its simd_<isa>.h.

// The largest |x| of a run, NaN if any element is NaN or infinite. Magnitudes are compared as
// integers, in whose order infinity and NaN come last.
template <class T>
float finite_absmax(const T* x, int64_t n) {
  constexpr int kLanes = F32::kLanes;
  const I32 magnitude = set1(0x7fffffff);
  I32 top = set1(0);
  I32 top2 = set1(0);
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    top = max(top, bits(load(x + i)) & magnitude);
    top2 = max(top2, bits(load(x + i + kLanes)) & magnitude);
  }
  int32_t largest = max_lane(max(top, top2));
  for (; i < n; ++i) {
    const int32_t m = __builtin_bit_cast(int32_t, to_float(x[i])) & 0x7fffffff;
    largest = m > largest ? m : largest;
  }
  return __builtin_bit_cast(float, largest >= 0x7f800000 ? 0x7fc00000 : largest);
}
