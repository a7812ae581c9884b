// Included inside an instruction set's namespace, after its simd_<isa>.h.

void dequantize_absmax_blocks(const DequantizeAbsmaxArgs& args, int64_t begin, int64_t end) {
  constexpr int kLanes = F32::kLanes;
  const AbsmaxArgs& absmax = args.absmax;
  const float offset = *absmax.offset;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t start = block * kNestedBlockSize;
    const int64_t n = start + kNestedBlockSize <= args.n ? kNestedBlockSize : args.n - start;
    const uint8_t* values = static_cast<const uint8_t*>(absmax.values) + start;
    const float scale = absmax.nested_absmax[block];
    float* out = args.out + start;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      store(out + i, lookup_u8(absmax.nested_code, values + i) * set1(scale) + set1(offset));
    }
    for (; i < n; ++i) {
      const float product = absmax.nested_code[values[i]] * scale;
      out[i] = product + offset;
    }
  }
}
