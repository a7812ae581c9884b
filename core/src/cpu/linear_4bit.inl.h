#include "cpu/convert.inl.h"
#include "cpu/weight_4bit.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

// Columns decoded at a time; a row of the panel ends in one more line so that rows spread over the cache's sets.
constexpr int64_t kPanelK = 512;
constexpr int64_t kPanelStride = kPanelK + 16;

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

}  // namespace

void linear_4bit_load_x(const Linear4bitArgs& args, int64_t begin, int64_t end, float* x, int64_t stride) {
  const int64_t cols = args.weight.cols;
  for (int64_t m = begin; m < end; ++m) {
    to_floats(args.x, args.dtype, m * cols, cols, x + m * stride);
    for (int64_t k = cols; k < stride; ++k) x[m * stride + k] = 0.0F;
  }
}

void linear_4bit_tile(const Linear4bitArgs& args, const float* x, int64_t stride, int64_t m0, int64_t m1, int64_t n0,
                      int64_t n1) {
  constexpr int kLanes = F32::kLanes;
  const int64_t cols = args.weight.cols;
  alignas(64) float panel[kLinearTileN * kPanelStride];
  alignas(64) float c[kLinearTileM * kLinearTileN] = {};
  const int64_t n_used = (n1 - n0 + kMicroN - 1) / kMicroN * kMicroN;
  for (int64_t i = (n1 - n0) * kPanelStride; i < n_used * kPanelStride; ++i) panel[i] = 0.0F;
  for (int64_t k0 = 0; k0 < cols; k0 += kPanelK) {
    const int64_t k1 = k0 + kPanelK < cols ? k0 + kPanelK : cols;
    const int64_t k = (k1 - k0 + kLanes - 1) / kLanes * kLanes;
    for (int64_t n = n0; n < n1; ++n) {
      float* row = panel + (n - n0) * kPanelStride;
      decode_row(args.weight, n, k0, k1, row);
      for (int64_t i = k1 - k0; i < k; ++i) row[i] = 0.0F;
    }
    for (int64_t n = 0; n < n_used; n += kMicroN) {
      int64_t m = m0;
      for (; m + kMicroM <= m1; m += kMicroM) {
        dot_micro<kMicroM>(x + m * stride + k0, stride, panel + n * kPanelStride, k, c + (m - m0) * kLinearTileN + n);
      }
      dot_rest<kMicroM - 1>(m1 - m, x + m * stride + k0, stride, panel + n * kPanelStride, k,
                            c + (m - m0) * kLinearTileN + n);
    }
  }
  float bias[kLinearTileN] = {};
  if (args.bias != nullptr) to_floats(args.bias, args.dtype, n0, n1 - n0, bias);
  for (int64_t m = m0; m < m1; ++m) {
    float* row = c + (m - m0) * kLinearTileN;
    for (int64_t n = 0; n < kLinearTileN; n += kLanes) store(row + n, load(row + n) + load(bias + n));
    from_floats(row, n1 - n0, args.out, args.dtype, m * args.weight.rows + n0);
  }
}
