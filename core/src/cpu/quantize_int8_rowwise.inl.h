#include "cpu/encode_run.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

constexpr int32_t kInfinityBits = 0x7f800000;
constexpr int32_t kNaNBits = 0x7fc00000;

// The largest |x| of a row as bits, in whose order infinity and NaN come last. Elements from `limit` on are not part
// of it: they are outliers, or, without a threshold, infinities, which like NaN make the result NaN.
template <class T>
int32_t scan_row(const T* x, int64_t n, int32_t limit, int32_t* outliers) {
  constexpr int kLanes = F32::kLanes;
  constexpr int64_t kChunk = 128;
  const I32 magnitude = set1(0x7fffffff);
  int32_t largest = 0;
  bool nan = false;
  auto one_by_one = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t m = __builtin_bit_cast(int32_t, to_float(x[i])) & 0x7fffffff;
      if (m < limit) {
        largest = m > largest ? m : largest;
      } else if (m > kInfinityBits || outliers == nullptr) {
        nan = true;
      } else {
        // Rows of other threads often have outliers in this column, too: only the first one writes.
        if (__atomic_load_n(outliers + i, __ATOMIC_RELAXED) == 0) __atomic_store_n(outliers + i, 1, __ATOMIC_RELAXED);
      }
    }
  };
  int64_t i = 0;
  for (; i + kChunk <= n; i += kChunk) {
    I32 top = set1(0);
    I32 top2 = set1(0);
    for (int64_t j = i; j < i + kChunk; j += 2 * kLanes) {
      top = max(top, bits(load(x + j)) & magnitude);
      top2 = max(top2, bits(load(x + j + kLanes)) & magnitude);
    }
    const int32_t m = max_lane(max(top, top2));
    if (m >= limit) {
      one_by_one(i, i + kChunk);
    } else {
      largest = m > largest ? m : largest;
    }
  }
  one_by_one(i, n);
  return nan ? kNaNBits : largest;
}

template <class T>
void scan_rows(const Int8Rows& rows, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(rows.x);
  const int32_t limit = rows.threshold > 0.0F ? __builtin_bit_cast(int32_t, rows.threshold) : kInfinityBits;
  for (int64_t row = begin; row < end; ++row) {
    const int32_t absmax = scan_row(x + row * rows.cols, rows.cols, limit, rows.outliers);
    rows.scales[row] = __builtin_bit_cast(float, absmax);
  }
}

// Codes of a row whose scale is above 0; those of outliers, beyond the scale, are arbitrary.
template <class T>
void code_row(const T* x, int64_t n, float scale, uint8_t* codes) {
  // Numbers from 2^23 to 2^24 are the integers: the one addition rounds the exact product, and the code, modulo 256,
  // is the last byte.
  constexpr float kIntegers = 0x1.8p23F;
  encode_run(x, n, codes,
             [&](F32 v) { return bits(fmadd(v / set1(scale), set1(kInt8Max), set1(kIntegers))) & set1(0xff); });
}

template <class T>
void code_rows(const Int8Rows& rows, int64_t count, int64_t begin, int64_t end) {
  const T* x = static_cast<const T*>(rows.x);
  for (int64_t row = begin; row < end; ++row) {
    int8_t* codes = rows.codes + row * rows.stride;
    const float scale = rows.scales[row];
    int64_t coded = 0;
    if (scale > 0.0F) {  // neither 0 nor NaN
      code_row(x + row * rows.cols, rows.cols, scale, reinterpret_cast<uint8_t*>(codes));
      coded = rows.cols;
      for (int64_t i = 0; i < count; ++i) codes[rows.outliers[i]] = 0;
    }
    if (coded < rows.stride) __builtin_memset(codes + coded, 0, static_cast<size_t>(rows.stride - coded));
  }
}

}  // namespace

void scan_int8_rows(const Int8Rows& rows, int64_t begin, int64_t end) {
  switch (rows.x_dtype) {
    case DType::BFloat16:
      return scan_rows<BFloat16>(rows, begin, end);
    case DType::Float16:
      return scan_rows<Float16>(rows, begin, end);
    default:
      return scan_rows<float>(rows, begin, end);
  }
}

void code_int8_rows(const Int8Rows& rows, int64_t count, int64_t begin, int64_t end) {
  switch (rows.x_dtype) {
    case DType::BFloat16:
      return code_rows<BFloat16>(rows, count, begin, end);
    case DType::Float16:
      return code_rows<Float16>(rows, count, begin, end);
    default:
      return code_rows<float>(rows, count, begin, end);
  }
}
