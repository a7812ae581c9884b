#pragma once

#include "cpu/panel_products.inl.h"
#include "cpu/weight_4bit.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h: products with many rows of x.

// c[m, n - n0] = x[m] . W[n] for n in [n0, n1) and `rows` rows of x; c holds zeros.
inline void many_tile(int64_t rows, const Weight4bitArgs& w, const float* x, int64_t stride, int64_t n0, int64_t n1,
                      float* c) {
  panel_tile(rows, w.cols, x, stride, n0, n1, c,
             [&](int64_t n, int64_t k0, int64_t k1, float* to) { decode_row(w, n, k0, k1, to); });
}
