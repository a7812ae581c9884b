#pragma once

#include "cuda/linear_int8_wgmma_parts.cuh"

// How the wgmma kernel of linear_int8 comes by operands of outlier columns: rows of 64 numbers of x's type.

namespace qbits::cuda {

// Where element j of a row lies in a tile of outliers.
__device__ inline uint32_t outlier_place(int row, int j) { return row * 128 + (j / 8 ^ (row & 7)) * 16 + j % 8 * 2; }

// Eight elements of a row of `matrix`, in columns `list(first)` and on, as loaded; 0 where there is none.
template <class Element, class List>
__device__ void load_columns(const Element* matrix, int64_t row, bool inside, int k, int first, int count, List list,
                             Element (&values)[8]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const bool valid = inside && first + j < count;
    const Element value = matrix[valid ? row * k + list(first + j) : 0];
    values[j] = valid ? value : Element{0};
  }
}

template <class T>
__device__ uint4 pack_columns(const uint16_t (&x)[8]) {
  return make_uint4(x[0] | x[1] << 16, x[2] | x[3] << 16, x[4] | x[5] << 16, x[6] | x[7] << 16);
}

template <class T>
__device__ uint4 pack_columns(const int8_t (&codes)[8]) {
  uint32_t words[4];
#pragma unroll
  for (int j = 0; j < 4; ++j)
    words[j] = pack<T>(static_cast<float>(codes[2 * j]), static_cast<float>(codes[2 * j + 1]));
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// `threads` threads gather outlier columns first to first + 64 of `count`, list(0) and on, of a tile's rows of a matrix
// of k columns, as numbers of x's type; what fills up the last sixteen columns is 0.
template <class T, class Element, class List>
__device__ void gather_outliers(const Element* matrix, int rows_begin, int rows_end, int tile_rows, uint32_t tile,
                                int k, List list, int first, int count, int thread, int threads) {
  const int groups = (min(count - first, kOutlierValues) + 15) / 16 * 2;  // of 8 columns
  for (int i = thread; i < tile_rows * groups; i += threads) {
    const int row = i / groups;
    const int group = i % groups;
    Element values[8];
    load_columns(matrix, rows_begin + row, rows_begin + row < rows_end, k, first + group * 8, count, list, values);
    store_shared(tile + outlier_place(row, group * 8), pack_columns<T>(values));
  }
}

// Adds the products of `count` outlier columns, 64 at most, in tiles of the weight, of which this thread has row and
// row + 8, and of x.
template <class T, int kSums>
__device__ void multiply_outliers(float (&sums)[kSums], uint32_t weight_tile, int row, uint32_t x_tile, int count) {
  const uint64_t x = tile_descriptor(x_tile);
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
  pin(sums);
  for (int first = 0; first < count; first += 16) {
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = load_shared<uint32_t>(weight_tile + outlier_place(row + i % 2 * 8, first + i / 2 * 8 + column));
    }
    wgmma_fence();
    wgmma<T>(sums, a, x + first / 8, 1);
    wgmma_commit();
    wgmma_wait<0>();
  }
  pin(sums);
}

// By all threads: what begins as 0, the tile of outliers of the weight, of which only columns that have any are
// written, and marks, to which bits are added.
template <class Shape>
__device__ void clear_shared(uint32_t begin, int bytes) {
  for (int i = static_cast<int>(threadIdx.x) * 16; i < bytes; i += Shape::kThreads * 16) {
    store_shared(begin + i, make_uint4(0, 0, 0, 0));
  }
}

// The weight's codes in the first outlier columns, picked by three warps from the ring as it goes by, for the block
// that finishes the tile, the first of its cluster.
template <class Shape>
__device__ void pick_outliers(const Int8WgmmaArgs& args, uint32_t window) {
  using T = typename Shape::T;
  constexpr int kThreads = Shape::kOutlierThreads;
  constexpr int kDepth = LinearInt8Wgmma::kDepth;
  constexpr int kMost = Shape::kOutlierColumns;
  const int thread = static_cast<int>(threadIdx.x) - 32;
  const int lane = thread % 32;
  wait_for_kernels_before();
  // Behind the last column there is -1, as an unsigned number beyond all.
  if (thread <= kMost) {
    const uint32_t column = thread < min(args.k, kMost) ? static_cast<uint32_t>(args.columns[thread]) : ~0U;
    store_shared(window + Shape::kList + thread * 4, column);
  }
  group_sync(kInt8OutlierBarrier, kThreads);
  const auto list = [&](int j) { return load_shared<uint32_t>(window + Shape::kList + j * 4); };
  const uint32_t low = list(lane);
  const uint32_t high = list(lane + 32);
  const uint32_t to = cluster_address(window + Shape::kOutlierWeight, 0);
  bool first = true;
  Int8Slot<Shape> slot;
  for_tiles<Shape>(args, [&](const Int8Tile& tile) {
    if (!first) barrier_wait(window + Shape::kOutliersUsed, tile.parity ^ 1);
    first = false;
    const auto begin = static_cast<uint32_t>(tile.begin * kDepth);
    int j = __popc(__ballot_sync(~0U, low < begin)) + __popc(__ballot_sync(~0U, high < begin));
    uint32_t next = list(j);
    for (int stage = tile.begin; stage < tile.end; ++stage) {
      barrier_wait(window + Shape::kFull + slot.index * 8, slot.parity);
      const uint32_t codes = window + slot.index * Shape::kStageBytes;
      while (next - stage * kDepth < kDepth) {
        const auto k = static_cast<int>(next - stage * kDepth);
        next = list(j + 1);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int n = thread + i * kThreads;
          if (n >= Shape::kRows) continue;
          const auto code = load_shared<int8_t>(codes + n * 128 + (k / 16 ^ (n & 7)) * 16 + k % 16);
          const auto value = static_cast<uint16_t>(pack<T>(static_cast<float>(code), 0.0F));
          args.splits > 1 ? store_cluster(to + outlier_place(n, j), value)
                          : store_shared(window + Shape::kOutlierWeight + outlier_place(n, j), value);
        }
        ++j;
      }
      __syncwarp();
      if (threadIdx.x % 32 == 0) barrier_arrive(window + Shape::kEmpty + slot.index * 8);
      slot.next();
    }
    barrier_arrive(window + Shape::kPicked);
  });
}

}  // namespace qbits::cuda
