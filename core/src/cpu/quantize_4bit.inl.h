#include "cpu/absmax.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

// Thresholds as a binary heap: entry 1 is the median, the children of i are 2i and 2i + 1, so that four
// steps from 1 end at 16 + rank.
struct EncodeTables {
  Table16 heap;
  Table16 codes;
};

EncodeTables make_encode_tables(const Encoder16& encoder) {
  float heap[16] = {};
  int32_t codes[16];
  for (int level = 0, first = 1, step = 8; level < 4; ++level, first *= 2, step /= 2) {
    for (int i = 0; i < first; ++i) heap[first + i] = encoder.thresholds[step - 1 + 2 * step * i];
  }
  for (int rank = 0; rank < 16; ++rank) codes[rank] = encoder.codes[rank];
  return {load_table(heap), load_table(codes)};
}

I32 encode(const EncodeTables& tables, F32 q) {
  I32 node = set1(1);
  for (int level = 0; level < 3; ++level) node = twice_plus_greater(node, q, lookup_low8(tables.heap, node));
  node = twice_plus_greater(node, q, lookup_high8(tables.heap, node));
  return lookup_int(tables.codes, node);  // the low four bits of 16 + rank are the rank
}

template <class T>
void quantize_blocks(const Quantize4bitArgs& args, const Encoder16& encoder, int64_t begin, int64_t end) {
  constexpr int kLanes = F32::kLanes;
  const EncodeTables tables = make_encode_tables(encoder);
  uint8_t codes[4096 + 1];
  for (int64_t block = begin; block < end; ++block) {
    const int64_t start = block * args.block_size;
    const int64_t n = start + args.block_size <= args.n ? args.block_size : args.n - start;
    const T* x = static_cast<const T*>(args.x) + start;
    const float absmax = finite_absmax(x, n);
    args.absmax[block] = absmax;
    if (absmax > 0.0F) {
      const F32 divisor = set1(absmax);
      int64_t i = 0;
      for (; i + kLanes <= n; i += kLanes) store_u8(codes + i, encode(tables, load(x + i) / divisor));
      if (i < n) {
        T rest[kLanes] = {};
        uint8_t rest_codes[kLanes];
        for (int64_t j = i; j < n; ++j) rest[j - i] = x[j];
        store_u8(rest_codes, encode(tables, load(rest) / divisor));
        for (int64_t j = i; j < n; ++j) codes[j] = rest_codes[j - i];
      }
    } else {
      for (int64_t i = 0; i < n; ++i) codes[i] = encoder.zero_code;
    }
    codes[n] = encoder.zero_code;  // the partner of an odd last element
    pack_nibbles(codes, (n + 1) / 2, args.codes + start / 2);
  }
}

}  // namespace

void quantize_4bit_blocks(const Quantize4bitArgs& args, const Encoder16& encoder, int64_t begin, int64_t end) {
  switch (args.x_dtype) {
    case DType::BFloat16:
      return quantize_blocks<BFloat16>(args, encoder, begin, end);
    case DType::Float16:
      return quantize_blocks<Float16>(args, encoder, begin, end);
    default:
      return quantize_blocks<float>(args, encoder, begin, end);
  }
}
