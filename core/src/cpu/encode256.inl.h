#pragma once

#include "cpu/absmax.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h and cpu/encoder256.h.

namespace {

// The number of thresholds that each lane of q exceeds; |q| <= 1.
template <bool kSearch>
I32 encode256(const Encoder256& encoder, F32 q) {
  const I32 b = bits(q);
  const I32 sign = sign_mask(b);
  const I32 magnitude = max(b & set1(0x7fffffff), set1(Encoder256::kSmallest));
  const I32 bin = shift_right<Encoder256::kShift>(magnitude - set1(Encoder256::kSmallest));
  const I32 entry = gather(encoder.bins, set1(Encoder256::kBinsPerSign) + (bin ^ sign));
  I32 code = shift_right<Encoder256::kShift>(entry);
  if constexpr (!kSearch) {
    const I32 rest = set1(Encoder256::kRest);
    return plus_if_greater(code, set1(1), (magnitude ^ sign) & rest, entry & rest);
  }
  for (int32_t step = 1 << (encoder.levels - 1); step > 0; step /= 2) {
    code = plus_if_greater(code, set1(step), q, gather(encoder.thresholds, code + set1(step - 1)));
  }
  return code;
}

template <bool kSearch, class T>
void encode256_run(const Encoder256& encoder, const T* x, int64_t n, float absmax, uint8_t* codes) {
  constexpr int kLanes = F32::kLanes;
  const F32 divisor = set1(absmax);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_u8(codes + i, encode256<kSearch>(encoder, load(x + i) / divisor));
  if (i < n) {
    T rest[kLanes] = {};
    uint8_t rest_codes[kLanes];
    for (int64_t j = i; j < n; ++j) rest[j - i] = x[j];
    store_u8(rest_codes, encode256<kSearch>(encoder, load(rest) / divisor));
    for (int64_t j = i; j < n; ++j) codes[j] = rest_codes[j - i];
  }
}

// The codes of one block, whose absmax is given.
template <class T>
void encode_block256(const Encoder256& encoder, const T* x, int64_t n, float absmax, uint8_t* codes) {
  if (!(absmax > 0.0F)) {
    for (int64_t i = 0; i < n; ++i) codes[i] = encoder.zero_code;
  } else if (encoder.levels == 0) {
    encode256_run<false>(encoder, x, n, absmax, codes);
  } else {
    encode256_run<true>(encoder, x, n, absmax, codes);
  }
}

// Quantizes one block and returns its absmax.
template <class T>
float quantize_block256(const Encoder256& encoder, const T* x, int64_t n, uint8_t* codes) {
  const float absmax = finite_absmax(x, n);
  encode_block256(encoder, x, n, absmax, codes);
  return absmax;
}

}  // namespace
