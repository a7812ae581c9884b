#include "cpu/put.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

template <class T, bool kStream>
void dequantize_rows(const DequantizeInt8RowwiseArgs& args, int64_t begin, int64_t end) {
  constexpr int kLanes = F32::kLanes;
  for (int64_t row = begin; row < end; ++row) {
    const int8_t* codes = args.codes + row * args.cols;
    T* out = static_cast<T*>(args.out) + row * args.cols;
    const float scale = args.scales[row];
    constexpr float kStep = 1.0F / kInt8Max;
    int64_t i = 0;
    for (; i + kLanes <= args.cols; i += kLanes) {
      put<kStream>(out + i, to_f32(load_i8(codes + i)) * set1(scale) * set1(kStep));
    }
    for (; i < args.cols; ++i) from_float(static_cast<float>(codes[i]) * scale * kStep, out[i]);
  }
  if constexpr (kStream) stream_fence();
}

template <class T>
void dequantize_rows(const DequantizeInt8RowwiseArgs& args, int64_t begin, int64_t end, bool stream) {
  // Streaming stores want whole aligned vectors: rows of multiples of 16 elements keep them so.
  const bool aligned = reinterpret_cast<uintptr_t>(args.out) % 64 == 0 && args.cols % 16 == 0;
  stream&& aligned ? dequantize_rows<T, true>(args, begin, end) : dequantize_rows<T, false>(args, begin, end);
}

}  // namespace

void dequantize_int8_rows(const DequantizeInt8RowwiseArgs& args, int64_t begin, int64_t end, bool stream) {
  switch (args.out_dtype) {
    case DType::BFloat16:
      return dequantize_rows<BFloat16>(args, begin, end, stream);
    case DType::Float16:
      return dequantize_rows<Float16>(args, begin, end, stream);
    default:
      return dequantize_rows<float>(args, begin, end, stream);
  }
}
