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
// and loads and stores of eight elements.

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

// Eight elements as loaded, widened only when used.
template <class T>
struct alignas(16) Eight {
  T value[8];
  __device__ float operator[](int i) const { return to_float(value[i]); }
};

// Elements i..i+7 of x, of which those from n on are 0. kAligned promises a 16-byte aligned x and i % 8 = 0.
template <bool kAligned, class T>
__device__ Eight<T> load_eight(const T* x, int64_t i, int64_t n) {
  Eight<T> out;
  if (kAligned && i + 8 <= n) {
    uint4* vectors = reinterpret_cast<uint4*>(out.value);
#pragma unroll
    for (int k = 0; k < 8 / kPerVector<T>; ++k) vectors[k] = __ldcs(reinterpret_cast<const uint4*>(x + i) + k);
  } else {
#pragma unroll
    for (int k = 0; k < 8; ++k) out.value[k] = i + k < n ? x[i + k] : T(0.0F);
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
