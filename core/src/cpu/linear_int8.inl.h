#include "cpu/convert.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h: all of linear_int8 but the integer products.

namespace {

constexpr int64_t kOutlierPanel = 256;  // outlier columns of W decoded at a time
constexpr int kOutlierN = 4;

// o[m, n] += x[m] . w[n] over k columns, for kOutlierN rows of w.
inline void outlier_sums(const float* x, const float* w, int64_t k, float* o) {
  F32 acc[kOutlierN];
  for (int n = 0; n < kOutlierN; ++n) acc[n] = set1(0.0F);
  for (int64_t i = 0; i < k; i += F32::kLanes) {
    const F32 v = load(x + i);
    for (int n = 0; n < kOutlierN; ++n) acc[n] = muladd(v, load(w + n * kOutlierPanel + i), acc[n]);
  }
  add_sums4(o, acc[0], acc[1], acc[2], acc[3]);
}

// o[m - m0, n - n0] = the product over the outlier columns.
void outlier_products(const LinearInt8Args& args, const Int8X& x, const Int8Tile& tile, float* o) {
  alignas(64) float panel[kInt8TileN * kOutlierPanel];
  for (int64_t i = 0; i < (tile.m1 - tile.m0) * kInt8TileN; ++i) o[i] = 0.0F;
  for (int64_t k0 = 0; k0 < x.outliers; k0 += kOutlierPanel) {
    const int64_t k = x.outliers - k0 < kOutlierPanel ? x.outliers - k0 : kOutlierPanel;
    const int64_t padded = (k + F32::kLanes - 1) / F32::kLanes * F32::kLanes;
    for (int64_t n = 0; n < kInt8TileN; ++n) {
      const int8_t* codes = args.codes + (tile.n0 + n < tile.n1 ? tile.n0 + n : tile.n1 - 1) * args.k;
      float* row = panel + n * kOutlierPanel;
      for (int64_t i = 0; i < k; ++i) row[i] = static_cast<float>(codes[x.columns[k0 + i]]);
      for (int64_t i = k; i < padded; ++i) row[i] = 0.0F;
    }
    for (int64_t n = 0; n < tile.n1 - tile.n0; n += kOutlierN) {
      for (int64_t m = tile.m0; m < tile.m1; ++m) {
        outlier_sums(x.values + m * x.value_stride + k0, panel + n * kOutlierPanel, padded,
                     o + (m - tile.m0) * kInt8TileN + n);
      }
    }
  }
}

template <class T>
void gather(const T* x, const int32_t* columns, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(x[columns[i]]);
}

void gather(const LinearInt8Args& args, int64_t row, const int32_t* columns, int64_t count, float* to) {
  switch (args.dtype) {
    case DType::BFloat16:
      return gather(static_cast<const BFloat16*>(args.x) + row * args.k, columns, count, to);
    case DType::Float16:
      return gather(static_cast<const Float16*>(args.x) + row * args.k, columns, count, to);
    default:
      return gather(static_cast<const float*>(args.x) + row * args.k, columns, count, to);
  }
}

}  // namespace

void linear_int8_load_x(const LinearInt8Args& args, const Int8X& x, int64_t begin, int64_t end, int32_t* sums,
                        float* values) {
  for (int64_t m = begin; m < end; ++m) {
    for (int64_t depth = 0; depth < x.depths; ++depth) {
      const int64_t k1 = (depth + 1) * kInt8Depth < args.k ? (depth + 1) * kInt8Depth : args.k;
      int32_t sum = 0;
      for (int64_t k = depth * kInt8Depth; k < k1; ++k) sum += x.codes[m * x.stride + k];
      sums[m * x.depths + depth] = sum;
    }
    if (x.outliers == 0) continue;
    float* row = values + m * x.value_stride;
    gather(args, m, x.columns, x.outliers, row);
    for (int64_t i = x.outliers; i < x.value_stride; ++i) row[i] = 0.0F;
  }
}

void linear_int8_tile(const LinearInt8Args& args, const Int8X& x, const Int8Tile& tile) {
  constexpr int kLanes = F32::kLanes;
  const int64_t n = tile.n1 - tile.n0;
  alignas(64) int64_t c[kInt8TileM * kInt8TileN];
  alignas(64) float o[kInt8TileM * kInt8TileN];
  alignas(64) float b[kInt8TileN] = {};
  alignas(64) float bias[kInt8TileN] = {};
  linear_int8_products({.codes = args.codes, .stride = args.k, .rows = args.n, .cols = args.k}, x, tile, c);
  if (x.outliers > 0) outlier_products(args, x, tile, o);
  for (int64_t i = 0; i < n; ++i) b[i] = args.scales[tile.n0 + i] / kInt8Max;
  if (args.bias != nullptr) to_floats(args.bias, args.dtype, tile.n0, n, bias);
  for (int64_t m = tile.m0; m < tile.m1; ++m) {
    const F32 a = set1(x.scales[m] / kInt8Max);
    const int64_t row = (m - tile.m0) * kInt8TileN;
    alignas(64) float out[kInt8TileN];
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(c[row + i]);
    for (int64_t i = n; i < kInt8TileN; ++i) out[i] = 0.0F;
    for (int64_t i = 0; i < n; i += kLanes) {
      const F32 rest = x.outliers > 0 ? load(o + row + i) : set1(0.0F);
      store(out + i, fmadd(load(b + i), fmadd(a, load(out + i), rest), load(bias + i)));
    }
    from_floats(out, n, args.out, args.dtype, m * args.n + tile.n0);
  }
}
