#pragma once

// Included inside an instruction set's namespace, after its simd_<isa>.h: products of float rows of x with a tile of
// rows of W, which are decoded once for all of them.

// Columns decoded at a time; a row of the panel ends in one more line so that rows spread over the cache's sets.
constexpr int64_t kPanelK = 512;
constexpr int64_t kPanelStride = kPanelK + 16;

// Rows of W and of x at a time: as many sums as the registers hold.
constexpr int kMicroN = 4;
constexpr int kMicroM = F32::kLanes == 16 ? 5 : F32::kLanes == 8 ? 3 : 2;

// c[m, n] += x[m] . w[n] over k columns, for kM rows of x and kMicroN rows of the panel.
template <int kM>
void dot_micro(const float* x, int64_t x_stride, const float* w, int64_t k, float* c) {
  F32 acc[kM][kMicroN];
  for (int m = 0; m < kM; ++m) {
    for (int n = 0; n < kMicroN; ++n) acc[m][n] = set1(0.0F);
  }
  for (int64_t i = 0; i < k; i += F32::kLanes) {
    F32 wv[kMicroN];
    for (int n = 0; n < kMicroN; ++n) wv[n] = load(w + n * kPanelStride + i);
    for (int m = 0; m < kM; ++m) {
      const F32 xv = load(x + m * x_stride + i);
      for (int n = 0; n < kMicroN; ++n) acc[m][n] = muladd(xv, wv[n], acc[m][n]);
    }
  }
  for (int m = 0; m < kM; ++m) {
    add_sums4(c + m * kLinearTileN, acc[m][0], acc[m][1], acc[m][2], acc[m][3]);
  }
}

template <int kM>
void dot_rest(int64_t m, const float* x, int64_t x_stride, const float* w, int64_t k, float* c) {
  if constexpr (kM > 0) {
    m == kM ? dot_micro<kM>(x, x_stride, w, k, c) : dot_rest<kM - 1>(m, x, x_stride, w, k, c);
  }
}

// c[m, n - n0] = x[m] . W[n] for n in [n0, n1) and `rows` rows of x, zeros behind their `cols` columns; c holds zeros.
// decode(n, k0, k1, to) writes columns [k0, k1) of row n of W.
template <class Decode>
void panel_tile(int64_t rows, int64_t cols, const float* x, int64_t stride, int64_t n0, int64_t n1, float* c,
                Decode decode) {
  constexpr int kLanes = F32::kLanes;
  alignas(64) float panel[kLinearTileN * kPanelStride];
  const int64_t n_used = (n1 - n0 + kMicroN - 1) / kMicroN * kMicroN;
  for (int64_t i = (n1 - n0) * kPanelStride; i < n_used * kPanelStride; ++i) panel[i] = 0.0F;
  for (int64_t k0 = 0; k0 < cols; k0 += kPanelK) {
    const int64_t k1 = k0 + kPanelK < cols ? k0 + kPanelK : cols;
    const int64_t k = (k1 - k0 + kLanes - 1) / kLanes * kLanes;
    for (int64_t n = n0; n < n1; ++n) {
      float* row = panel + (n - n0) * kPanelStride;
      decode(n, k0, k1, row);
      for (int64_t i = k1 - k0; i < k; ++i) row[i] = 0.0F;
    }
    for (int64_t n = 0; n < n_used; n += kMicroN) {
      const float* wn = panel + n * kPanelStride;
      int64_t m = 0;
      for (; m + kMicroM <= rows; m += kMicroM) {
        dot_micro<kMicroM>(x + m * stride + k0, stride, wn, k, c + m * kLinearTileN + n);
      }
      dot_rest<kMicroM - 1>(rows - m, x + m * stride + k0, stride, wn, k, c + m * kLinearTileN + n);
    }
  }
}
