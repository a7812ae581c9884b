#pragma once

#include <algorithm>

#include "cuda/float_types.cuh"
#include "cuda/launch.h"
#include "ops/args.h"

// How codes become numbers, for every kernel that reads a quantized tensor. A decoder (passed by value) has
//   kBits                         per code
//   Shared, prepare(Shared&)      tables, filled by all threads
//   Raw, load(block)              what memory holds of a block's scale
//   Scale, scale(Shared, Raw)     what the block's elements need
//   is_finite(Scale)              false where values may be NaN
//   value(Shared, Scale, code)    in float32, every operation rounded

namespace qbits::cuda {

template <bool kNested>
struct Codebook16Decoder {
  struct Shared {
    float table[16];
    float nested[kNested ? 256 : 1];
  };
  struct Nested {
    float absmax;
    float offset;
    uint8_t code;
  };
  using Raw = std::conditional_t<kNested, Nested, float>;
  using Scale = float;
  static constexpr int kBits = 4;

  float table[16];
  AbsmaxArgs absmax;

  __device__ void prepare(Shared& shared) const {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread < 16) shared.table[thread] = table[thread];
    if constexpr (kNested) {
      for (int i = thread; i < 256; i += static_cast<int>(blockDim.x)) shared.nested[i] = absmax.nested_code[i];
    }
  }
  __device__ Raw load(int64_t block) const {
    if constexpr (kNested) {
      return {__ldg(absmax.nested_absmax + block / kNestedBlockSize), __ldg(absmax.offset),
              __ldg(static_cast<const uint8_t*>(absmax.values) + block)};
    } else {
      return __ldg(static_cast<const float*>(absmax.values) + block);
    }
  }
  __device__ static Scale scale(const Shared& shared, Raw raw) {
    if constexpr (kNested) {
      return __fadd_rn(__fmul_rn(shared.nested[raw.code], raw.absmax), raw.offset);
    } else {
      return raw;
    }
  }
  __device__ static bool is_finite(Scale scale) { return isfinite(scale); }
  __device__ static float value(const Shared& shared, Scale scale, uint32_t code) {
    return __fmul_rn(shared.table[code], scale);
  }
};

struct Codebook256Decoder {
  struct Shared {
    float table[256];
  };
  using Raw = float;
  using Scale = float;
  static constexpr int kBits = 8;

  const float* table;
  const float* absmax;

  __device__ void prepare(Shared& shared) const {
    for (int i = static_cast<int>(threadIdx.x); i < 256; i += static_cast<int>(blockDim.x)) shared.table[i] = table[i];
  }
  __device__ Raw load(int64_t block) const { return __ldg(absmax + block); }
  __device__ static Scale scale(const Shared&, Raw raw) { return raw; }
  __device__ static bool is_finite(Scale scale) { return isfinite(scale); }
  __device__ static float value(const Shared& shared, Scale scale, uint32_t code) {
    return __fmul_rn(shared.table[code], scale);
  }
};

template <int kBitsPerCode, class S>
struct AffineDecoder {
  struct Shared {};
  struct Scale {
    float scale;
    float zero;
  };
  using Raw = Scale;
  static constexpr int kBits = kBitsPerCode;

  const S* scales;
  const S* zeros;

  __device__ static void prepare(Shared&) {}
  __device__ Raw load(int64_t block) const { return {to_float(scales[block]), to_float(zeros[block])}; }
  __device__ static Scale scale(const Shared&, Raw raw) { return raw; }
  __device__ static bool is_finite(Scale s) { return isfinite(s.scale) && isfinite(s.zero); }
  __device__ static float value(const Shared&, Scale s, uint32_t code) {
    return __fmul_rn(__fsub_rn(static_cast<float>(code), s.zero), s.scale);
  }
};

template <bool kNested>
Codebook16Decoder<kNested> make_decoder(const Format& format, const AbsmaxArgs& absmax) {
  Codebook16Decoder<kNested> decoder{.table = {}, .absmax = absmax};
  std::copy_n(format.codebook.begin(), 16, decoder.table);
  return decoder;
}

// Division of indices: by shift where the divisor is a power of two, in 32 bits where they suffice.
struct Divisor {
  int64_t size;
  int shift;  // -1: not a power of two

  explicit Divisor(int64_t divisor) : size(divisor), shift(exact_log2(divisor)) {}
  __device__ int64_t operator()(int64_t i) const {
    if (shift >= 0) return i >> shift;
    if (((i | size) >> 32) == 0) return static_cast<uint32_t>(i) / static_cast<uint32_t>(size);
    return i / size;
  }
};

// The codes of kCount elements from element i on, i being a multiple of kCount.
template <int kBits, int kCount>
struct PackedCodes {
  static constexpr int kBytes = kBits * kCount / 8;
  using Word = std::conditional_t<kBytes == 8, uint64_t, uint32_t>;
  Word bits;

  // kAligned promises pointers aligned to kBytes; elements from n on read as 0.
  template <bool kAligned>
  __device__ static PackedCodes load(const uint8_t* codes, int64_t i, int64_t n) {
    const uint8_t* p = codes + i * kBits / 8;
    if (kAligned && i + kCount <= n) {
      if constexpr (kBytes == 2) return {__ldg(reinterpret_cast<const uint16_t*>(p))};
      if constexpr (kBytes == 4) return {__ldg(reinterpret_cast<const uint32_t*>(p))};
      if constexpr (kBytes == 8) return {__ldg(reinterpret_cast<const unsigned long long*>(p))};
    }
    PackedCodes out{0};
#pragma unroll
    for (int k = 0; k < kBytes; ++k) {
      if (i + k * (8 / kBits) < n) out.bits |= static_cast<Word>(p[k]) << (8 * k);
    }
    return out;
  }

  // The first of two codes is in the high nibble.
  __device__ uint32_t operator[](int k) const {
    if constexpr (kBits == 4) {
      return static_cast<uint32_t>(bits >> (k / 2 * 8 + (k % 2 == 0 ? 4 : 0))) & 15U;
    } else {
      return static_cast<uint32_t>(bits >> (8 * k)) & 255U;
    }
  }
};

template <int kBits>
__device__ uint32_t load_code(const uint8_t* codes, int64_t i) {
  if constexpr (kBits == 4) {
    return static_cast<uint32_t>(codes[i / 2] >> (i % 2 == 0 ? 4 : 0)) & 15U;
  } else {
    return codes[i];
  }
}

// Decodes 16 bytes of output from codes of one block.
template <class T, class Decoder>
__device__ uint4 decode_vector(const typename Decoder::Shared& shared, typename Decoder::Scale scale,
                               PackedCodes<Decoder::kBits, kPerVector<T>> codes) {
  float x[kPerVector<T>];
#pragma unroll
  for (int k = 0; k < kPerVector<T>; ++k) x[k] = Decoder::value(shared, scale, codes[k]);
  uint4 out = pack_vector<T>(x);
  if (!Decoder::is_finite(scale)) {
    T* elements = reinterpret_cast<T*>(&out);
#pragma unroll
    for (int k = 0; k < kPerVector<T>; ++k) elements[k] = from_float<T>(x[k]);
  }
  return out;
}

}  // namespace qbits::cuda
