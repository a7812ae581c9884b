#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "qbits/dtype.h"
#include "qbits/error.h"

// Float types of tensors on the device: conversions with one rounding, the one NaN every device writes,
// and loads of a thread's elements.

namespace qbits::cuda {

inline constexpr uint32_t kNanBits = 0x7fc00000;
inline constexpr uint32_t kInfinityBits = 0x7f800000;

__device__ inline float quiet_nan() { return __uint_as_float(kNanBits); }

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }

// The bits of the quiet NaN in T, twice in a word for 16-bit types.
template <class T>
inline constexpr uint32_t kNanWord = 0;
template <>
inline constexpr uint32_t kNanWord<float> = kNanBits;
template <>
inline constexpr uint32_t kNanWord<__nv_bfloat16> = 0x7fc07fc0;
template <>
inline constexpr uint32_t kNanWord<__half> = 0x7e007e00;

// Rounds to nearest even. A NaN becomes the quiet NaN (the hardware's own has other bits).
template <class T>
__device__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return isnan(x) ? quiet_nan() : x;
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return isnan(x) ? __ushort_as_bfloat16(0x7fc0) : __float2bfloat16_rn(x);
  } else {
    return isnan(x) ? __ushort_as_half(0x7e00) : __float2half_rn(x);
  }
}

// Elements in 16 bytes.
template <class T>
inline constexpr int kPerVector = 16 / static_cast<int>(sizeof(T));

// Rounds 16 bytes of finite values.
template <class T>
__device__ uint4 pack_vector(const float (&x)[kPerVector<T>]) {
  uint4 out;
  uint32_t* words = reinterpret_cast<uint32_t*>(&out);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, float>) {
      words[i] = __float_as_uint(x[i]);
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
      words[i] = reinterpret_cast<const uint32_t&>(pair);
    } else {
      const __half2 pair = __floats2half2_rn(x[2 * i], x[2 * i + 1]);
      words[i] = reinterpret_cast<const uint32_t&>(pair);
    }
  }
  return out;
}

// Two elements of a 16-bit type as the hardware works on them.
template <class T>
using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;

// Consecutive elements as loaded, widened only when used. Words, since the compiler takes an array of 16-bit types
// apart.
template <class T, int kCount>
struct alignas(16) Run {
  uint32_t words[kCount * sizeof(T) / 4];

  __device__ Pair<T> pair(int k) const { return reinterpret_cast<const Pair<T>&>(words[k]); }
  __device__ float operator[](int i) const {
    if constexpr (std::is_same_v<T, float>) {
      return __uint_as_float(words[i]);
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      return __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000U);
    } else {
      return i % 2 == 0 ? __low2float(pair(i / 2)) : __high2float(pair(i / 2));
    }
  }
};

// Elements i.. of x, which is aligned to 16 bytes as i is to 8 elements.
template <int kCount, class T>
__device__ Run<T, kCount> load_run(const T* x, int64_t i) {
  Run<T, kCount> out;
#pragma unroll
  for (int k = 0; k < kCount / kPerVector<T>; ++k) {
    reinterpret_cast<uint4*>(out.words)[k] = reinterpret_cast<const uint4*>(x + i)[k];
  }
  return out;
}

// Elements i.. of any x, 0 behind the first `valid`.
template <int kCount, class T>
__device__ Run<T, kCount> load_run(const T* x, int64_t i, int valid) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
  constexpr int kPerWord = 4 / sizeof(T);
  const Bits* bits = reinterpret_cast<const Bits*>(x + i);
  Run<T, kCount> out{};
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    if (k < valid) out.words[k / kPerWord] |= static_cast<uint32_t>(bits[k]) << (k % kPerWord * 16);
  }
  return out;
}

template <class T>
struct TypeTag {
  using type = T;
};

// Calls f with the tag of a float dtype.
template <class F>
void dispatch_float(DType dtype, std::string_view op, F&& f) {
  switch (dtype) {
    case DType::Float32:
      return f(TypeTag<float>{});
    case DType::BFloat16:
      return f(TypeTag<__nv_bfloat16>{});
    case DType::Float16:
      return f(TypeTag<__half>{});
    default:
      throw Error(ErrorCode::Unsupported, "[" + std::string(op) + "] dtype: got " + std::string(name(dtype)) +
                                              ", want float32, bfloat16 or float16");
  }
}

// Calls f with std::true_type or std::false_type.
template <class F>
void dispatch_bool(bool value, F&& f) {
  value ? f(std::true_type{}) : f(std::false_type{});
}

}  // namespace qbits::cuda
