// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

constexpr int32_t kInfinityBits = 0x7f800000;

// Ones where an element of this magnitude is no outlier: below the threshold or NaN. Without a threshold, always.
class Inliers {
 public:
  explicit Inliers(float threshold)
      : last_(set1(threshold > 0.0F ? __builtin_bit_cast(int32_t, threshold) - 1 : kInfinityBits)) {}

  I32 operator()(I32 magnitude) const {
    const I32 beyond = sign_mask(last_ - magnitude);
    const I32 nan = sign_mask(set1(kInfinityBits) - magnitude);
    return beyond ^ nan ^ set1(-1);
  }

 private:
  I32 last_;
};

// Calls f(at, columns) for vectors of the columns of a row, and with at most one for what is over, a copy behind which
// zeros stand; `columns` is their number.
template <class T, class F>
void for_vectors(const T* x, int64_t n, F f) {
  constexpr int kLanes = F32::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(x + i, i, kLanes);
  if (i < n) {
    T rest[kLanes] = {};
    for (int64_t j = i; j < n; ++j) rest[j - i] = x[j];
    f(rest, i, static_cast<int>(n - i));
  }
}

template <class T>
void scan_columns(const QuantizeInt8ColwiseArgs& args, const Int8Part& part, float* tops) {
  constexpr int kLanes = F32::kLanes;
  const Inliers inliers(args.threshold);
  const int64_t n = part.col1 - part.col0;
  for (int64_t i = 0; i < n; ++i) tops[i] = 0.0F;
  for (int64_t row = part.row0; row < part.row1; ++row) {
    for_vectors(static_cast<const T*>(args.x) + row * args.cols + part.col0, n,
                [&](const T* x, int64_t i, int columns) {
                  const I32 magnitude = bits(load(x)) & set1(0x7fffffff);
                  const I32 own = magnitude & inliers(magnitude);
                  if (columns == kLanes) {
                    store(tops + i, from_bits(max(bits(load(tops + i)), own)));
                    return;
                  }
                  float all[kLanes];
                  store(all, from_bits(own));
                  for (int j = 0; j < columns; ++j) {
                    // As integers: among them a NaN is the greatest.
                    const int32_t mine = __builtin_bit_cast(int32_t, all[j]);
                    if (mine > __builtin_bit_cast(int32_t, tops[i + j])) tops[i + j] = all[j];
                  }
                });
  }
}

template <class T>
void code_columns(const QuantizeInt8ColwiseArgs& args, const Int8Part& part) {
  constexpr int kLanes = F32::kLanes;
  constexpr float kIntegers = 0x1.8p23F;  // as in quantize_int8_rowwise
  const Inliers inliers(args.threshold);
  const int64_t n = part.col1 - part.col0;
  const auto code = [&](const T* x, F32 scale) {
    const F32 v = load(x);
    const I32 rounded = bits(fmadd(v / scale, set1(kInt8Max), set1(kIntegers)));
    const I32 coded = plus_if_greater(set1(0), set1(-1), scale, set1(0.0F));  // neither 0 nor NaN
    return rounded & set1(0xff) & coded & inliers(bits(v) & set1(0x7fffffff));
  };
  for (int64_t row = part.row0; row < part.row1; ++row) {
    auto* const codes = reinterpret_cast<uint8_t*>(args.codes) + row * args.cols + part.col0;
    for_vectors(static_cast<const T*>(args.x) + row * args.cols + part.col0, n,
                [&](const T* x, int64_t i, int columns) {
                  const float* const scales = args.scales + part.col0 + i;
                  if (columns == kLanes) return store_u8(codes + i, code(x, load(scales)));
                  float some[kLanes] = {};
                  uint8_t rest[kLanes];
                  for (int j = 0; j < columns; ++j) some[j] = scales[j];
                  store_u8(rest, code(x, load(some)));
                  for (int j = 0; j < columns; ++j) codes[i + j] = rest[j];
                });
  }
}

}  // namespace

void scan_int8_columns(const QuantizeInt8ColwiseArgs& args, const Int8Part& part, float* tops) {
  switch (args.x_dtype) {
    case DType::BFloat16:
      return scan_columns<BFloat16>(args, part, tops);
    case DType::Float16:
      return scan_columns<Float16>(args, part, tops);
    default:
      return scan_columns<float>(args, part, tops);
  }
}

void code_int8_columns(const QuantizeInt8ColwiseArgs& args, const Int8Part& part) {
  switch (args.x_dtype) {
    case DType::BFloat16:
      return code_columns<BFloat16>(args, part);
    case DType::Float16:
      return code_columns<Float16>(args, part);
    default:
      return code_columns<float>(args, part);
  }
}
