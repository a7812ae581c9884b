#include <algorithm>
#include <cstring>

#include "cpu/igemm_kernel.h"
#include "cpu/linear_4bit_kernel.h"
#include "cpu/thread_pool.h"
#include "ops/ceil_div.h"

// Both operands with their depth in rows: a always copied, into rows that the kernels of linear_int8 take for x, b only
// where it lies the other way.

namespace qbits::cpu {
namespace {

int64_t padded(int64_t size) { return ceil_div(size, kInt8RowAlignment) * kInt8RowAlignment; }

// The workspace, each part on a cache line of its own.
struct Layout {
  int64_t stride;  // of rows, as in linear_int8
  int64_t depths;
  int64_t sums;
  int64_t b;
  int64_t size;

  explicit Layout(const IgemmArgs& args)
      : stride(padded(args.k) + kInt8RowAlignment),
        depths(ceil_div(args.k, kInt8Depth)),
        // More rows than any memory holds would overflow the products.
        sums(std::min(args.batch * args.m, int64_t{1} << 52) * stride),
        b(sums + padded(std::min(args.batch * args.m, int64_t{1} << 52) * depths * 4)),
        size(b + (args.transpose_b ? 0 : std::min(args.batch * args.n, int64_t{1} << 52) * stride)) {}
};

constexpr int kBlock = 8;

// to[j, i] = from[i, j] for 8 x 8 bytes: halves of ever smaller blocks change places.
void transpose_block(const int8_t* from, int64_t from_stride, int8_t* to, int64_t to_stride) {
  uint64_t rows[kBlock];
  for (int i = 0; i < kBlock; ++i) std::memcpy(rows + i, from + i * from_stride, kBlock);
  const auto swap = [&](int distance, int bits, uint64_t low) {
    for (int i = 0; i < kBlock; ++i) {
      if ((i & distance) != 0) continue;
      const uint64_t different = (rows[i] >> bits ^ rows[i + distance]) & low;
      rows[i + distance] ^= different;
      rows[i] ^= different << bits;
    }
  };
  swap(4, 32, 0x00000000ffffffff);
  swap(2, 16, 0x0000ffff0000ffff);
  swap(1, 8, 0x00ff00ff00ff00ff);
  for (int i = 0; i < kBlock; ++i) std::memcpy(to + i * to_stride, rows + i, kBlock);
}

// Rows [begin, end) of to, which are columns of from [depth, from_stride].
void transpose(const int8_t* from, int64_t from_stride, int64_t depth, int64_t begin, int64_t end, int8_t* to,
               int64_t to_stride) {
  int64_t k = 0;
  for (; k + kBlock <= depth; k += kBlock) {
    int64_t j = begin;
    for (; j + kBlock <= end; j += kBlock) {
      transpose_block(from + k * from_stride + j, from_stride, to + j * to_stride + k, to_stride);
    }
    for (; j < end; ++j) {
      for (int64_t i = k; i < k + kBlock; ++i) to[j * to_stride + i] = from[i * from_stride + j];
    }
  }
  for (; k < depth; ++k) {
    for (int64_t j = begin; j < end; ++j) to[j * to_stride + k] = from[k * from_stride + j];
  }
}

// Rows [begin, end) of an operand [rows, depth], or of its transpose, `stride` apart, with zeros behind.
void pack(const int8_t* from, int64_t rows, int64_t depth, bool transposed, int64_t begin, int64_t end, int8_t* to,
          int64_t stride) {
  if (transposed) transpose(from, rows, depth, begin, end, to, stride);
  for (int64_t i = begin; i < end; ++i) {
    if (!transposed && depth > 0) std::memcpy(to + i * stride, from + i * depth, static_cast<size_t>(depth));
    std::memset(to + i * stride + depth, 0, static_cast<size_t>(stride - depth));
  }
}

// Calls f(batch, begin, end) for runs of the rows of all matrices of a batch.
template <class F>
void for_rows(int64_t batch, int64_t rows, int64_t grain, F f) {
  const int64_t runs = ceil_div(rows, grain);
  parallel_for(batch * runs, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t begin = task % runs * grain;
      f(task / runs, begin, std::min(begin + grain, rows));
    }
  });
}

}  // namespace

int64_t igemm_workspace(const IgemmArgs& args) { return Layout(args).size + kInt8RowAlignment; }

void igemm(const IgemmArgs& args) {
  const Layout layout(args);
  auto* const base = reinterpret_cast<int8_t*>(padded(reinterpret_cast<int64_t>(args.workspace)));
  auto* const sums = reinterpret_cast<int32_t*>(base + layout.sums);
  int8_t* const b = base + layout.b;
  // Whole blocks of a transpose, and enough bytes to be worth a task.
  const int64_t grain = std::max<int64_t>(65536 / layout.stride, 1) * kBlock;
  for_rows(args.batch, args.m, grain, [&](int64_t batch, int64_t begin, int64_t end) {
    int8_t* const to = base + batch * args.m * layout.stride;
    pack(args.a + batch * args.m * args.k, args.m, args.k, args.transpose_a, begin, end, to, layout.stride);
    for (int64_t i = begin * layout.depths; i < end * layout.depths; ++i) {
      const int8_t* const row = to + i / layout.depths * layout.stride;
      const int64_t k0 = i % layout.depths * kInt8Depth;
      int32_t sum = 0;
      for (int64_t k = k0; k < std::min(k0 + kInt8Depth, args.k); ++k) sum += row[k];
      sums[batch * args.m * layout.depths + i] = sum;
    }
  });
  if (!args.transpose_b) {
    for_rows(args.batch, args.n, grain, [&](int64_t batch, int64_t begin, int64_t end) {
      pack(args.b + batch * args.n * args.k, args.n, args.k, true, begin, end, b + batch * args.n * layout.stride,
           layout.stride);
    });
  }

  const int64_t tiles_m = ceil_div(args.m, kInt8TileM);
  const int64_t tiles_n = ceil_div(args.n, kInt8TileN);
  const int64_t tile_m = ceil_div(args.m, tiles_m);  // tiles of about equal height
  const auto run = [&](int64_t begin, int64_t end) {
    alignas(64) int64_t c[kInt8TileM * kInt8TileN];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t batch = task / (tiles_m * tiles_n);
      const int64_t n0 = task / tiles_m % tiles_n * kInt8TileN;
      const int64_t m0 = task % tiles_m * tile_m;
      if (m0 >= args.m) continue;
      const Int8Tile tile{
          .m0 = m0, .m1 = std::min(m0 + tile_m, args.m), .n0 = n0, .n1 = std::min(n0 + kInt8TileN, args.n)};
      const Int8X x{.codes = base + batch * args.m * layout.stride,
                    .stride = layout.stride,
                    .sums = sums + batch * args.m * layout.depths,
                    .depths = layout.depths};
      const int64_t first = batch * args.n;
      const Int8W w{.codes = args.transpose_b ? args.b + first * args.k : b + first * layout.stride,
                    .stride = args.transpose_b ? args.k : layout.stride,
                    .rows = args.n,
                    .cols = args.k};
      igemm_products_isa(w, x, tile, c);
      for (int64_t m = tile.m0; m < tile.m1; ++m) {
        int32_t* const out = args.out + (batch * args.m + m) * args.n + n0;
        const int64_t* const row = c + (m - m0) * kInt8TileN;
        for (int64_t n = 0; n < tile.n1 - n0; ++n) out[n] = static_cast<int32_t>(row[n]);  // modulo 2^32
      }
    }
  };
  parallel_for(args.batch * tiles_n * tiles_m, 1, run, worth_waking(args.batch * args.m, args.n, args.k));
}

}  // namespace qbits::cpu
