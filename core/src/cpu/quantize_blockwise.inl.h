#include "cpu/encode256.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

template <class T>
void quantize_blocks(const QuantizeBlockwiseArgs& args, const Encoder256& encoder, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    const int64_t start = block * args.block_size;
    const int64_t n = start + args.block_size <= args.n ? args.block_size : args.n - start;
    args.absmax[block] = quantize_block256(encoder, static_cast<const T*>(args.x) + start, n, args.codes + start);
  }
}

}  // namespace

void quantize_blockwise_blocks(const QuantizeBlockwiseArgs& args, const Encoder256& encoder, int64_t begin,
                               int64_t end) {
  switch (args.x_dtype) {
    case DType::BFloat16:
      return quantize_blocks<BFloat16>(args, encoder, begin, end);
    case DType::Float16:
      return quantize_blocks<Float16>(args, encoder, begin, end);
    default:
      return quantize_blocks<float>(args, encoder, begin, end);
  }
}
