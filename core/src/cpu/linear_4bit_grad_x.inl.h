#include "cpu/convert.inl.h"
#include "cpu/weight_4bit.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

// Rows of W decoded at a time; a row of the panel ends in one more line so that rows spread over the cache's sets.
constexpr int64_t kPanelN = 64;
constexpr int64_t kPanelStride = kGradTileK + 16;
constexpr int64_t kAhead = 16;

constexpr int kMicroM = F32::kLanes == 16 ? 12 : F32::kLanes == 8 ? 6 : 4;

// c[m, two vectors] += grad[m, n] * w[n, two vectors] for kM rows of grad, n ascending.
template <int kM>
void outer_micro(const float* grad, int64_t stride, const float* w, int64_t n, float* c) {
  constexpr int kLanes = F32::kLanes;
  F32 acc[kM][2];
  for (int m = 0; m < kM; ++m) {
    acc[m][0] = load(c + m * kGradTileK);
    acc[m][1] = load(c + m * kGradTileK + kLanes);
  }
  for (int64_t i = 0; i < n; ++i) {
    const F32 w0 = load(w + i * kPanelStride);
    const F32 w1 = load(w + i * kPanelStride + kLanes);
    for (int m = 0; m < kM; ++m) {
      const F32 g = set1(grad[m * stride + i]);
      acc[m][0] = muladd(g, w0, acc[m][0]);
      acc[m][1] = muladd(g, w1, acc[m][1]);
    }
  }
  for (int m = 0; m < kM; ++m) {
    store(c + m * kGradTileK, acc[m][0]);
    store(c + m * kGradTileK + kLanes, acc[m][1]);
  }
}

template <int kM>
void outer_rest(int64_t m, const float* grad, int64_t stride, const float* w, int64_t n, float* c) {
  if constexpr (kM > 0) {
    m == kM ? outer_micro<kM>(grad, stride, w, n, c) : outer_rest<kM - 1>(m, grad, stride, w, n, c);
  }
}

}  // namespace

void linear_4bit_grad_x_load(const Linear4bitGradXArgs& args, int64_t columns, int64_t begin, int64_t end, float* grad,
                             int64_t stride) {
  for (int64_t m = begin; m < end; ++m) to_floats(args.grad, args.dtype, m * columns, columns, grad + m * stride);
}

void linear_4bit_grad_x_tile(const Linear4bitGradXArgs& args, WeightRows rows, const float* grad, int64_t stride,
                             int64_t m0, int64_t m1, int64_t k0, int64_t k1) {
  constexpr int kStep = 2 * F32::kLanes;
  alignas(64) float panel[kPanelN * kPanelStride];
  alignas(64) float c[kGradTileM * kGradTileK] = {};
  const int64_t k_used = (k1 - k0 + kStep - 1) / kStep * kStep;
  for (int64_t n0 = 0; n0 < rows.count; n0 += kPanelN) {
    const int64_t n = n0 + kPanelN < rows.count ? kPanelN : rows.count - n0;
    for (int64_t i = 0; i < n; ++i) {
      // A tile reads a few lines of each row, too far apart for the hardware to foresee.
      const int64_t at = rows.begin + n0 + i;
      const int64_t ahead = at + kAhead < args.weight.rows ? at + kAhead : at;
      for (int64_t k = k0; k < k1; k += 128) __builtin_prefetch(args.weight.codes + (ahead * args.weight.cols + k) / 2);
      float* row = panel + i * kPanelStride;
      decode_row(args.weight, at, k0, k1, row);
      for (int64_t k = k1 - k0; k < k_used; ++k) row[k] = 0.0F;
    }
    for (int64_t k = 0; k < k_used; k += kStep) {
      int64_t m = m0;
      for (; m + kMicroM <= m1; m += kMicroM) {
        outer_micro<kMicroM>(grad + m * stride + n0, stride, panel + k, n, c + (m - m0) * kGradTileK + k);
      }
      outer_rest<kMicroM - 1>(m1 - m, grad + m * stride + n0, stride, panel + k, n, c + (m - m0) * kGradTileK + k);
    }
  }
  for (int64_t m = m0; m < m1; ++m) {
    from_floats(c + (m - m0) * kGradTileK, k1 - k0, args.out, args.dtype, m * args.weight.cols + k0);
  }
}
