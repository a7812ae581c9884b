#include "cpu/put.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

float get(const void* values, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::BFloat16:
      return to_float(static_cast<const BFloat16*>(values)[i]);
    case DType::Float16:
      return to_float(static_cast<const Float16*>(values)[i]);
    default:
      return static_cast<const float*>(values)[i];
  }
}

template <class T, bool kStream>
void dequantize_groups(const DequantizeAffineArgs& args, int64_t begin, int64_t end) {
  constexpr int kLanes = F32::kLanes;
  const int64_t groups_per_row = (args.cols - 1) / args.group_size + 1;
  const bool packed = args.format->is_4bit();
  for (int64_t g = begin; g < end; ++g) {
    const int64_t first = g % groups_per_row * args.group_size;
    const int64_t start = g / groups_per_row * args.cols + first;
    const int64_t n = args.group_size < args.cols - first ? args.group_size : args.cols - first;
    T* out = static_cast<T*>(args.out) + start;
    const float scale = get(args.scales, args.scale_dtype, g);
    const float zero = get(args.zeros, args.scale_dtype, g);
    auto one = [&](int64_t i) {
      const uint8_t byte = args.codes[packed ? (start + i) / 2 : start + i];
      const int code = !packed ? byte : (start + i) % 2 ? byte & 15 : byte >> 4;
      from_float((static_cast<float>(code) - zero) * scale, out[i]);
    };
    int64_t i = 0;
    if (packed) {
      if (start % 2) one(i++);
      const uint8_t* codes = args.codes + (start + i) / 2;
      const int64_t head = i;
      for (; i + kLanes <= n; i += kLanes) {
        put<kStream>(out + i, (to_f32(load_nibbles(codes, i - head)) - set1(zero)) * set1(scale));
      }
    } else {
      const uint8_t* codes = args.codes + start;
      for (; i + kLanes <= n; i += kLanes) {
        put<kStream>(out + i, (to_f32(load_u8(codes + i)) - set1(zero)) * set1(scale));
      }
    }
    for (; i < n; ++i) one(i);
  }
  if constexpr (kStream) stream_fence();
}

template <class T>
void dequantize_groups(const DequantizeAffineArgs& args, int64_t begin, int64_t end, bool stream) {
  // Streaming stores want whole aligned vectors: rows and groups of multiples of 16 elements keep them so.
  const bool aligned =
      reinterpret_cast<uintptr_t>(args.out) % 64 == 0 && args.cols % 16 == 0 && args.group_size % 16 == 0;
  stream&& aligned ? dequantize_groups<T, true>(args, begin, end) : dequantize_groups<T, false>(args, begin, end);
}

}  // namespace

void dequantize_affine_groups(const DequantizeAffineArgs& args, int64_t begin, int64_t end, bool stream) {
  switch (args.out_dtype) {
    case DType::BFloat16:
      return dequantize_groups<BFloat16>(args, begin, end, stream);
    case DType::Float16:
      return dequantize_groups<Float16>(args, begin, end, stream);
    default:
      return dequantize_groups<float>(args, begin, end, stream);
  }
}
