#pragma once

#include "cpu/convert.inl.h"
#include "cpu/weight_4bit.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h: products with few rows of x.
//
// Codes are used straight from memory. A chunk is kLanes 32-bit words of a row, eight codes each; bits 4p of a
// word hold its element p ^ 1, so one shift and one lookup yield that element of every word of the chunk. x is
// put into the same order once per call. A word never spans two blocks, so a chunk's sums are multiplied by the
// scales of its words at the end. Needs columns in multiples of eight.
//
// Where rows are whole blocks the scales of a panel are kept one after the other and a chunk looks up those of
// its lanes; elsewhere each word has its own copy.

constexpr int64_t kChunk = 8 * F32::kLanes;

// As many rows of W at a time as leave the sums in registers: each value of x is loaded once for all of them.
template <int kM>
constexpr int few_rows_of_w() {
  if (F32::kLanes == 16) return kM <= 4 ? 4 : 2;
  if (F32::kLanes == 8) return kM == 1 ? 4 : kM <= 6 ? 2 : 1;
  return 1;
}

// Columns at a time, so that their x stays in the first-level cache.
template <int kM>
constexpr int64_t few_panel() {
  return kM == 1 ? 4096 : kM == 2 ? 2048 : kM <= 4 ? 1024 : 512;
}

// out[word] = at(scale of the word) for the words of columns [begin, end), then zeros for the rest of a chunk.
template <class At>
void spread_scales(const Weight4bitArgs& w, int64_t row, int64_t begin, int64_t end, At at, float* out) {
  for_each_run(w, row, begin, end, [&](int64_t first, int64_t last, int64_t scale) {
    const F32 value = set1(at(scale));
    // The last vector may reach beyond the run; the next run overwrites that.
    for (int64_t k = first; k < last; k += kChunk) store(out + (k - begin) / 8, value);
  });
  store(out + (end - begin) / 8, set1(0.0F));
}

template <int kM, int kRows, bool kAffine>
struct FewKernel {
  static constexpr int64_t kPanel = few_panel<kM>();
  static constexpr int kLanes = F32::kLanes;

  static constexpr int kEntries = kPanel / 8 + 16;  // a lookup may read sixteen

  const Weight4bitArgs& w;
  const Table16 table;
  const bool whole_blocks;
  int shift = 62;  // columns of an entry of `scales`, as a power of two; 62: one entry for the row
  I32 entry_of_lane = set1(0);
  alignas(64) float scales[kRows][kEntries];
  alignas(64) float zeros[kAffine ? kRows : 1][kAffine ? kEntries : 1];

  FewKernel(const Weight4bitArgs& weight, const Table16& codebook)
      : w(weight), table(codebook), whole_blocks(weight.cols % weight.block_size == 0) {
    const int64_t span = whole_blocks ? w.block_size : 8;
    if ((span & (span - 1)) != 0) return;  // only a whole row has such a length
    shift = __builtin_ctzll(static_cast<uint64_t>(span));
    int32_t entries[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) entries[lane] = (8 * lane) >> shift;
    entry_of_lane = load_i32(entries);
  }

  // The scales (or zeros) of row `row` for columns [begin, end), one for each entry, then zeros.
  template <class At>
  void fill(int64_t row, int64_t begin, int64_t end, At at, float* out) const {
    if (!whole_blocks) {
      spread_scales(w, row, begin, end, at, out);
      return;
    }
    const int64_t first = (row * w.cols + begin) / w.block_size;
    const int64_t count = (row * w.cols + end - 1) / w.block_size - first + 1;
    for (int64_t i = 0; i < count; ++i) out[i] = at(first + i);
    for (int64_t i = count; i < count + 16 && i < kEntries; ++i) out[i] = 0.0F;
  }

  // What `entries` holds for each lane of the chunk whose first entry is `entry`.
  F32 of_lanes(const float* entries, int64_t entry) const {
    if constexpr (kLanes == 1) {
      return set1(entries[entry]);
    } else {
      return lookup_low8(load_table(entries + entry), entry_of_lane);
    }
  }

  template <int kPosition>
  void position(const I32 (&words)[kRows], const F32 (&zero)[kRows], const float* x, int64_t stride,
                F32 (&sums)[kRows][kM]) const {
    F32 values[kRows];
    for (int r = 0; r < kRows; ++r) {
      const I32 codes = shift_right<4 * kPosition>(words[r]);
      values[r] = kAffine ? to_f32(codes & set1(15)) - zero[r] : lookup(table, codes);
    }
    for (int m = 0; m < kM; ++m) {
      const F32 xv = load(x + m * stride + kPosition * kLanes);
      for (int r = 0; r < kRows; ++r) sums[r][m] = muladd(xv, values[r], sums[r][m]);
    }
    if constexpr (kPosition < 7) position<kPosition + 1>(words, zero, x, stride, sums);
  }

  void chunk(const I32 (&words)[kRows], int64_t entry, const float* x, int64_t stride, F32 (&totals)[kRows][kM]) const {
    F32 zero[kRows] = {};
    F32 sums[kRows][kM];
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kAffine) zero[r] = of_lanes(zeros[r], entry);
      for (int m = 0; m < kM; ++m) sums[r][m] = set1(0.0F);
    }
    position<0>(words, zero, x, stride, sums);
    for (int r = 0; r < kRows; ++r) {
      const F32 scale = of_lanes(scales[r], entry);
      for (int m = 0; m < kM; ++m) totals[r][m] = muladd(sums[r][m], scale, totals[r][m]);
    }
  }

  // totals[r, m] += the products over columns [begin, end), lane by lane; `x` starts at column begin.
  // `ahead` is the distance in bytes to the codes wanted next.
  void panel(const int64_t (&rows)[kRows], int64_t begin, int64_t end, const float* x, int64_t stride, int64_t ahead,
             F32 (&totals)[kRows][kM]) {
    const uint8_t* codes[kRows];
    for (int r = 0; r < kRows; ++r) {
      codes[r] = w.codes + (rows[r] * w.cols + begin) / 2;
      if constexpr (kAffine) {
        fill(rows[r], begin, end, [&](int64_t i) { return scale_at(w, i); }, scales[r]);
        fill(rows[r], begin, end, [&](int64_t i) { return zero_at(w, i); }, zeros[r]);
      } else if (w.absmax.is_nested()) {
        fill(rows[r], begin, end, [&](int64_t i) { return absmax_at(w.absmax, i); }, scales[r]);
      } else {
        const float* absmax = static_cast<const float*>(w.absmax.values);
        fill(rows[r], begin, end, [=](int64_t i) { return absmax[i]; }, scales[r]);
      }
    }
    I32 words[kRows];
    int64_t k = 0;
    for (; k + kChunk <= end - begin; k += kChunk) {
      for (int r = 0; r < kRows; ++r) {
        words[r] = load_words(codes[r] + k / 2);
        __builtin_prefetch(codes[r] + k / 2 + ahead);
      }
      chunk(words, entry(begin, k), x + k, stride, totals);
    }
    if (k < end - begin) {
      const int count = static_cast<int>((end - begin - k) / 8);
      for (int r = 0; r < kRows; ++r) words[r] = load_words(codes[r] + k / 2, count);
      chunk(words, entry(begin, k), x + k, stride, totals);
    }
  }

  int64_t entry(int64_t begin, int64_t k) const { return ((begin + k) >> shift) - (begin >> shift); }
};

// c[m, n - n0] = x[m] . W[n] for n in [n0, n1) and kM rows of x in chunk order.
template <int kM, bool kAffine>
void few_tile(const Weight4bitArgs& w, const float* x, int64_t stride, int64_t n0, int64_t n1, float* c) {
  constexpr int kRows = few_rows_of_w<kM>();
  using Kernel = FewKernel<kM, kRows, kAffine>;
  Table16 table{};
  if constexpr (!kAffine) table = load_table(w.format->codebook.data());
  Kernel kernel(w, table);
  F32 totals[kLinearTileN / kRows][kRows][kM];
  for (auto& group : totals) {
    for (auto& row : group) {
      for (F32& total : row) total = set1(0.0F);
    }
  }
  for (int64_t k = 0; k < w.cols; k += Kernel::kPanel) {
    const int64_t end = k + Kernel::kPanel < w.cols ? k + Kernel::kPanel : w.cols;
    for (int64_t n = n0; n < n1; n += kRows) {
      int64_t rows[kRows];
      for (int r = 0; r < kRows; ++r) rows[r] = n + r < n1 ? n + r : n1 - 1;
      const int64_t ahead = n + 2 * kRows <= w.rows ? kRows * w.cols / 2 : 0;
      kernel.panel(rows, k, end, x + k, stride, ahead, totals[(n - n0) / kRows]);
    }
  }
  for (int64_t n = n0; n < n1; ++n) {
    for (int m = 0; m < kM; ++m) c[m * kLinearTileN + n - n0] = sum(totals[(n - n0) / kRows][(n - n0) % kRows][m]);
  }
}

template <int kM>
void few_tile(int64_t m, const Weight4bitArgs& w, const float* x, int64_t stride, int64_t n0, int64_t n1, float* c) {
  if constexpr (kM > 0) {
    if (m != kM) return few_tile<kM - 1>(m, w, x, stride, n0, n1, c);
    w.is_affine() ? few_tile<kM, true>(w, x, stride, n0, n1, c) : few_tile<kM, false>(w, x, stride, n0, n1, c);
  }
}

// Row m of x, already floats and padded with zeros, into chunk order.
inline void to_chunk_order(float* row, int64_t stride) {
  float chunk[kChunk];
  for (int64_t k = 0; k + kChunk <= stride; k += kChunk) {
    for (int64_t i = 0; i < kChunk; ++i) chunk[i] = row[k + i];
    for (int p = 0; p < 8; ++p) {
      for (int lane = 0; lane < F32::kLanes; ++lane) row[k + p * F32::kLanes + lane] = chunk[lane * 8 + (p ^ 1)];
    }
  }
}
