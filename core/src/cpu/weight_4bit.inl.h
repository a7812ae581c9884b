#pragma once

// Included inside an instruction set's namespace, after its simd_<isa>.h and "cpu/absmax.h": reading parts of
// a 4-bit weight as floats, whatever the format and wherever a row begins.

inline float float_at(const void* p, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::BFloat16:
      return to_float(static_cast<const BFloat16*>(p)[i]);
    case DType::Float16:
      return to_float(static_cast<const Float16*>(p)[i]);
    default:
      return static_cast<const float*>(p)[i];
  }
}

inline float scale_at(const Weight4bitArgs& w, int64_t i) {
  return w.is_affine() ? float_at(w.scales, w.scale_dtype, i) : absmax_at(w.absmax, i);
}

inline float zero_at(const Weight4bitArgs& w, int64_t i) { return float_at(w.zeros, w.scale_dtype, i); }

// Calls f(first, last, scale index) for the parts of columns [begin, end) of a row that share a scale.
template <class F>
void for_each_run(const Weight4bitArgs& w, int64_t row, int64_t begin, int64_t end, F f) {
  if (begin >= end) return;
  // Codebook blocks are counted from the start of the tensor, affine groups from that of the row.
  const int64_t base = w.is_affine() ? 0 : row * w.cols;
  int64_t scale = (base + begin) / w.block_size;
  int64_t last = (scale + 1) * w.block_size - base;
  if (w.is_affine()) scale += row * ((w.cols - 1) / w.block_size + 1);
  for (int64_t first = begin; first < end; ++scale, first = last, last += w.block_size) {
    f(first, last < end ? last : end, scale);
  }
}

// out[i] = value(code `start + i` of the stream) for i in [0, n). The codes have dirt above their low four bits.
template <class Value>
void decode_run(const uint8_t* codes, int64_t start, int64_t n, Value value, float* out) {
  constexpr int kLanes = F32::kLanes;
  float rest[kLanes];
  if (start % 2 != 0) {  // vectors start at whole bytes
    store(rest, value(set1(static_cast<int32_t>(codes[start / 2]))));
    *out++ = rest[0];
    ++start;
    --n;
  }
  const uint8_t* p = codes + start / 2;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, value(load_low_nibbles(p, i)));
  if (i < n) {
    uint8_t rest_codes[kLanes / 2 + 1] = {};
    for (int64_t j = i / 2; j < (n + 1) / 2; ++j) rest_codes[j - i / 2] = p[j];
    store(rest, value(load_low_nibbles(rest_codes, 0)));
    for (int64_t j = i; j < n; ++j) out[j] = rest[j - i];
  }
}

// out[k - begin] = W[row, k] for columns [begin, end).
inline void decode_row(const Weight4bitArgs& w, int64_t row, int64_t begin, int64_t end, float* out) {
  const int64_t base = row * w.cols;
  if (w.is_affine()) {
    for_each_run(w, row, begin, end, [&](int64_t first, int64_t last, int64_t group) {
      const F32 scale = set1(scale_at(w, group));
      const F32 zero = set1(zero_at(w, group));
      auto value = [&](I32 code) { return (to_f32(code & set1(15)) - zero) * scale; };
      decode_run(w.codes, base + first, last - first, value, out + (first - begin));
    });
    return;
  }
  const Table16 table = load_table(w.format->codebook.data());
  for_each_run(w, row, begin, end, [&](int64_t first, int64_t last, int64_t block) {
    const F32 scale = set1(scale_at(w, block));
    auto value = [&](I32 code) { return lookup(table, code) * scale; };
    decode_run(w.codes, base + first, last - first, value, out + (first - begin));
  });
}
