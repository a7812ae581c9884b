#pragma once

// Included inside an instruction set's namespace, after its simd_<isa>.h: rows of floats between dtypes.

template <class From, class To>
void convert(const From* from, int64_t n, To* to) {
  constexpr int kLanes = F32::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  if (i < n) {
    From rest[kLanes] = {};
    To rest_to[kLanes];
    for (int64_t j = i; j < n; ++j) rest[j - i] = from[j];
    store(rest_to, load(rest));
    for (int64_t j = i; j < n; ++j) to[j] = rest_to[j - i];
  }
}

// to[i] = element begin + i of `from`.
inline void to_floats(const void* from, DType dtype, int64_t begin, int64_t n, float* to) {
  switch (dtype) {
    case DType::BFloat16:
      return convert(static_cast<const BFloat16*>(from) + begin, n, to);
    case DType::Float16:
      return convert(static_cast<const Float16*>(from) + begin, n, to);
    default:
      return convert(static_cast<const float*>(from) + begin, n, to);
  }
}

// Element begin + i of `to` = from[i], rounded to nearest.
inline void from_floats(const float* from, int64_t n, void* to, DType dtype, int64_t begin) {
  switch (dtype) {
    case DType::BFloat16:
      return convert(from, n, static_cast<BFloat16*>(to) + begin);
    case DType::Float16:
      return convert(from, n, static_cast<Float16*>(to) + begin);
    default:
      return convert(from, n, static_cast<float*>(to) + begin);
  }
}
