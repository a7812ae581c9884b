#pragma once

// Included inside an instruction set's namespace, after its simd_<isa>.h.

// codes[i] = encode(x[i]), from a vector of floats to one of integers from 0 to 255.
template <class T, class Encode>
void encode_run(const T* x, int64_t n, uint8_t* codes, Encode encode) {
  constexpr int kLanes = F32::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_u8(codes + i, encode(load(x + i)));
  if (i < n) {
    T rest[kLanes] = {};
    uint8_t rest_codes[kLanes];
    for (int64_t j = i; j < n; ++j) rest[j - i] = x[j];
    store_u8(rest_codes, encode(load(rest)));
    for (int64_t j = i; j < n; ++j) codes[j] = rest_codes[j - i];
  }
}
