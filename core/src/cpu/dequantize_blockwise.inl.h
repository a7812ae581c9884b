#include "cpu/put.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

template <class T, bool kStream>
void dequantize_blocks(const DequantizeBlockwiseArgs& args, int64_t begin, int64_t end) {
  constexpr int kLanes = F32::kLanes;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t start = block * args.block_size;
    const int64_t n = start + args.block_size <= args.n ? args.block_size : args.n - start;
    const uint8_t* codes = args.codes + start;
    T* out = static_cast<T*>(args.out) + start;
    const float absmax = args.absmax[block];
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) put<kStream>(out + i, lookup_u8(args.code, codes + i) * set1(absmax));
    for (; i < n; ++i) from_float(args.code[codes[i]] * absmax, out[i]);
  }
  if constexpr (kStream) stream_fence();
}

template <class T>
void dequantize_blocks(const DequantizeBlockwiseArgs& args, int64_t begin, int64_t end, bool stream) {
  // Streaming stores want whole aligned vectors; block sizes are multiples of 16, so an aligned start keeps them so.
  const bool aligned = reinterpret_cast<uintptr_t>(args.out) % 64 == 0;
  stream&& aligned ? dequantize_blocks<T, true>(args, begin, end) : dequantize_blocks<T, false>(args, begin, end);
}

}  // namespace

void dequantize_blockwise_blocks(const DequantizeBlockwiseArgs& args, int64_t begin, int64_t end, bool stream) {
  switch (args.out_dtype) {
    case DType::BFloat16:
      return dequantize_blocks<BFloat16>(args, begin, end, stream);
    case DType::Float16:
      return dequantize_blocks<Float16>(args, begin, end, stream);
    default:
      return dequantize_blocks<float>(args, begin, end, stream);
  }
}
