#include "cpu/put.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

template <class T, bool kStream>
void dequantize_blocks(const Dequantize4bitArgs& args, const float* absmax, int64_t begin, int64_t end) {
  constexpr int kLanes = F32::kLanes;
  const Table16 table = load_table(args.format->codebook.data());
  for (int64_t block = begin; block < end; ++block) {
    const int64_t start = block * args.block_size;
    const int64_t n = start + args.block_size <= args.n ? args.block_size : args.n - start;
    const uint8_t* codes = args.codes + start / 2;
    T* out = static_cast<T*>(args.out) + start;
    const F32 scale = set1(absmax[block - begin]);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) put<kStream>(out + i, lookup(table, load_low_nibbles(codes, i)) * scale);
    if (i < n) {
      uint8_t rest[kLanes / 2 + 1] = {};
      T rest_out[kLanes];
      for (int64_t j = i / 2; j < (n + 1) / 2; ++j) rest[j - i / 2] = codes[j];
      store(rest_out, lookup(table, load_low_nibbles(rest, 0)) * scale);
      for (int64_t j = i; j < n; ++j) out[j] = rest_out[j - i];
    }
  }
  if constexpr (kStream) stream_fence();
}

template <class T>
void dequantize_blocks(const Dequantize4bitArgs& args, const float* absmax, int64_t begin, int64_t end, bool stream) {
  // Streaming stores want whole aligned vectors; block sizes are multiples of 16, so an aligned start keeps them so.
  const bool aligned = reinterpret_cast<uintptr_t>(args.out) % 64 == 0;
  stream&& aligned ? dequantize_blocks<T, true>(args, absmax, begin, end)
                   : dequantize_blocks<T, false>(args, absmax, begin, end);
}

}  // namespace

void dequantize_4bit_blocks(const Dequantize4bitArgs& args, const float* absmax, int64_t begin, int64_t end,
                            bool stream) {
  switch (args.out_dtype) {
    case DType::BFloat16:
      return dequantize_blocks<BFloat16>(args, absmax, begin, end, stream);
    case DType::Float16:
      return dequantize_blocks<Float16>(args, absmax, begin, end, stream);
    default:
      return dequantize_blocks<float>(args, absmax, begin, end, stream);
  }
}
