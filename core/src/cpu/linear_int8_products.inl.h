// Included inside an instruction set's namespace. A Dot of that is:
//   Weights  kStep codes of a row of W, made from memory by weights(p), or from the first `count` and zeros
//   Codes    as many of a row of x, made by codes(p)
//   Sums     32-bit sums, at first zero(); add(sums, w, x) adds products, add_sums4(c, s0, s1, s2, s3, x_sum) adds the
//            lanes of each to c[0..3], x_sum being the sum of x's codes
//   kMicroM  rows of x at a time: as many sums as the registers hold

namespace {

constexpr int kMicroN = 4;

// c[m, n] += x[m] . w[n] over k columns, for kM rows of x and kMicroN of W. Meanwhile the rows `ahead` bytes further on
// are fetched.
template <class Dot, int kM>
void products_micro(const int8_t* x, int64_t stride, const int8_t* const* w, int64_t k, int64_t ahead,
                    const int32_t* sums, int64_t depths, int64_t* c) {
  typename Dot::Sums acc[kM][kMicroN];
  for (int m = 0; m < kM; ++m) {
    for (int n = 0; n < kMicroN; ++n) acc[m][n] = Dot::zero();
  }
  for (int64_t i = 0; i < k; i += Dot::kStep) {
    typename Dot::Weights codes[kMicroN];
    if constexpr (Dot::kStep > 1) {
      for (int n = 0; n < kMicroN; ++n) __builtin_prefetch(w[n] + ahead + i);
    }
    if (i + Dot::kStep <= k) {
      for (int n = 0; n < kMicroN; ++n) codes[n] = Dot::weights(w[n] + i);
    } else {
      for (int n = 0; n < kMicroN; ++n) codes[n] = Dot::weights(w[n] + i, static_cast<int>(k - i));
    }
    for (int m = 0; m < kM; ++m) {
      const typename Dot::Codes v = Dot::codes(x + m * stride + i);
      for (int n = 0; n < kMicroN; ++n) acc[m][n] = Dot::add(acc[m][n], codes[n], v);
    }
  }
  // A loop as long as this one would be left a loop, and the sums in memory for its sake.
  [&]<size_t... kRow>(std::index_sequence<kRow...>) {
    (Dot::add_sums4(c + kRow * kInt8TileN, acc[kRow][0], acc[kRow][1], acc[kRow][2], acc[kRow][3],
                    sums[static_cast<int64_t>(kRow) * depths]),
     ...);
  }(std::make_index_sequence<kM>{});
}

// The same for `m` rows of x, at most kM.
template <class Dot, int kM>
void products(int64_t m, const int8_t* x, int64_t stride, const int8_t* const* w, int64_t k, int64_t ahead,
              const int32_t* sums, int64_t depths, int64_t* c) {
  if constexpr (kM > 0) {
    m == kM ? products_micro<Dot, kM>(x, stride, w, k, ahead, sums, depths, c)
            : products<Dot, kM - 1>(m, x, stride, w, k, ahead, sums, depths, c);
  }
}

// c[m - m0, n - n0] = x[m] . w[n], rows of c kInt8TileN apart.
template <class Dot>
void products_tile(const Int8W& w, const Int8X& x, const Int8Tile& tile, int64_t* c) {
  static_assert(kInt8TileN % kMicroN == 0 && kInt8RowAlignment % Dot::kStep == 0);
  const int64_t rows = tile.m1 - tile.m0;
  for (int64_t i = 0; i < rows * kInt8TileN; ++i) c[i] = 0;
  for (int64_t depth = 0; depth < x.depths; ++depth) {
    const int64_t k0 = depth * kInt8Depth;
    const int64_t k = w.cols - k0 < kInt8Depth ? w.cols - k0 : kInt8Depth;
    for (int64_t n = tile.n0; n < tile.n1; n += kMicroN) {
      const int8_t* rows_w[kMicroN];
      for (int i = 0; i < kMicroN; ++i) rows_w[i] = w.codes + (n + i < tile.n1 ? n + i : tile.n1 - 1) * w.stride + k0;
      const int64_t ahead = n + 2 * kMicroN <= w.rows ? kMicroN * w.stride : 0;
      for (int64_t m = 0; m < rows; m += Dot::kMicroM) {
        const int64_t row = tile.m0 + m;
        products<Dot, Dot::kMicroM>(rows - m < Dot::kMicroM ? rows - m : Dot::kMicroM, x.codes + row * x.stride + k0,
                                    x.stride, rows_w, k, ahead, x.sums + row * x.depths + depth, x.depths,
                                    c + m * kInt8TileN + n - tile.n0);
      }
    }
  }
}

}  // namespace
