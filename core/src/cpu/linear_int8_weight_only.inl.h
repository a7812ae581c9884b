#include "cpu/convert.inl.h"
#include "cpu/panel_products.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

void decode_codes(const int8_t* codes, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + F32::kLanes <= n; i += F32::kLanes) store(to + i, to_f32(load_i8(codes + i)));
  for (; i < n; ++i) to[i] = static_cast<float>(codes[i]);
}

// c[m, n] += x[m] . w[n] for kM rows of x and kMicroN of W, read where they lie.
template <int kM>
void few_micro(const float* x, int64_t stride, const int8_t* const* w, int64_t k, float* c) {
  constexpr int kLanes = F32::kLanes;
  F32 acc[kM][kMicroN];
  for (int m = 0; m < kM; ++m) {
    for (int n = 0; n < kMicroN; ++n) acc[m][n] = set1(0.0F);
  }
  const auto add = [&](const F32(&codes)[kMicroN], int64_t i) {
    for (int m = 0; m < kM; ++m) {
      const F32 v = load(x + m * stride + i);
      for (int n = 0; n < kMicroN; ++n) acc[m][n] = muladd(v, codes[n], acc[m][n]);
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    F32 codes[kMicroN];
    for (int n = 0; n < kMicroN; ++n) codes[n] = to_f32(load_i8(w[n] + i));
    add(codes, i);
  }
  if (i < k) {
    F32 codes[kMicroN];
    for (int n = 0; n < kMicroN; ++n) {
      float rest[kLanes] = {};
      decode_codes(w[n] + i, k - i, rest);
      codes[n] = load(rest);
    }
    add(codes, i);
  }
  for (int m = 0; m < kM; ++m) add_sums4(c + m * kLinearTileN, acc[m][0], acc[m][1], acc[m][2], acc[m][3]);
}

template <int kM>
void few_rows(int64_t rows, const LinearInt8WeightOnlyArgs& args, const float* x, const Int8FloatTile& tile, float* c) {
  if constexpr (kM > 0) {
    if (rows != kM) return few_rows<kM - 1>(rows, args, x, tile, c);
    for (int64_t n = tile.n0; n < tile.n1; n += kMicroN) {
      const int8_t* w[kMicroN];
      for (int i = 0; i < kMicroN; ++i) w[i] = args.codes + (n + i < tile.n1 ? n + i : tile.n1 - 1) * args.k;
      few_micro<kM>(x, tile.stride, w, args.k, c + n - tile.n0);
    }
  }
}

}  // namespace

void linear_int8_weight_only_load_x(const LinearInt8WeightOnlyArgs& args, int64_t begin, int64_t end, float* x,
                                    int64_t stride) {
  for (int64_t m = begin; m < end; ++m) {
    to_floats(args.x, args.dtype, m * args.k, args.k, x + m * stride);
    for (int64_t k = args.k; k < stride; ++k) x[m * stride + k] = 0.0F;
  }
}

void linear_int8_weight_only_tile(const LinearInt8WeightOnlyArgs& args, const Int8FloatTile& tile) {
  const int64_t n = tile.n1 - tile.n0;
  const int64_t m = tile.m1 - tile.m0;
  const float* x = tile.x + tile.m0 * tile.stride;
  alignas(64) float c[kLinearTileM * kLinearTileN];
  alignas(64) float b[kLinearTileN] = {};
  alignas(64) float bias[kLinearTileN] = {};
  for (int64_t i = 0; i < m * kLinearTileN; ++i) c[i] = 0.0F;
  if (m <= kFewInt8Rows) {
    few_rows<kFewInt8Rows>(m, args, x, tile, c);
  } else {
    panel_tile(m, args.k, x, tile.stride, tile.n0, tile.n1, c, [&](int64_t row, int64_t k0, int64_t k1, float* to) {
      decode_codes(args.codes + row * args.k + k0, k1 - k0, to);
    });
  }
  for (int64_t i = 0; i < n; ++i) b[i] = args.scales[tile.n0 + i] / kInt8Max;
  if (args.bias != nullptr) to_floats(args.bias, args.dtype, tile.n0, n, bias);
  for (int64_t i = 0; i < m; ++i) {
    float* row = c + i * kLinearTileN;
    for (int64_t j = 0; j < n; j += F32::kLanes) {
      store(row + j, fmadd(load(b + j), load(row + j), load(bias + j)));
    }
    from_floats(row, n, args.out, args.dtype, (tile.m0 + i) * args.n + tile.n0);
  }
}
