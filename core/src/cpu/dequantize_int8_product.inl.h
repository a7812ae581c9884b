#include "cpu/convert.inl.h"
#include "cpu/put.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

constexpr int64_t kStrip = 512;  // columns whose factors and bias are at hand for all rows

template <class T, bool kStream>
void product_strip(const DequantizeInt8ProductArgs& args, int64_t begin, int64_t end, int64_t n0, int64_t n1) {
  constexpr int kLanes = F32::kLanes;
  alignas(64) float b[kStrip + kLanes] = {};
  alignas(64) float bias[kStrip + kLanes] = {};
  for (int64_t n = n0; n < n1; ++n) b[n - n0] = args.column_scales[n] / kInt8Max;
  if (args.bias != nullptr) to_floats(args.bias, args.dtype, n0, n1 - n0, bias);
  for (int64_t m = begin; m < end; ++m) {
    const F32 a = set1(args.row_scales[m] / kInt8Max);
    const int32_t* dots = args.dots + m * args.n + n0;
    T* out = static_cast<T*>(args.out) + m * args.n + n0;
    const auto value = [&](const int32_t* at, int64_t i) {
      return fmadd(load(b + i), fmadd(a, to_f32(load_i32(at)), set1(0.0F)), load(bias + i));
    };
    int64_t i = 0;
    for (; i + kLanes <= n1 - n0; i += kLanes) put<kStream>(out + i, value(dots + i, i));
    if (i < n1 - n0) {
      int32_t rest[kLanes] = {};
      T rest_out[kLanes];
      for (int64_t j = i; j < n1 - n0; ++j) rest[j - i] = dots[j];
      store(rest_out, value(rest, i));
      for (int64_t j = i; j < n1 - n0; ++j) out[j] = rest_out[j - i];
    }
  }
  if constexpr (kStream) stream_fence();
}

template <class T>
void product_rows(const DequantizeInt8ProductArgs& args, int64_t begin, int64_t end, bool stream) {
  // Streaming stores want whole aligned vectors: rows of multiples of 16 elements keep them so.
  const bool aligned = reinterpret_cast<uintptr_t>(args.out) % 64 == 0 && args.n % 16 == 0;
  for (int64_t n0 = 0; n0 < args.n; n0 += kStrip) {
    const int64_t n1 = n0 + kStrip < args.n ? n0 + kStrip : args.n;
    stream&& aligned ? product_strip<T, true>(args, begin, end, n0, n1)
                     : product_strip<T, false>(args, begin, end, n0, n1);
  }
}

}  // namespace

void dequantize_product_rows(const DequantizeInt8ProductArgs& args, int64_t begin, int64_t end, bool stream) {
  switch (args.dtype) {
    case DType::BFloat16:
      return product_rows<BFloat16>(args, begin, end, stream);
    case DType::Float16:
      return product_rows<Float16>(args, begin, end, stream);
    default:
      return product_rows<float>(args, begin, end, stream);
  }
}
