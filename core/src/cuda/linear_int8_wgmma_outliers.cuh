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

// Columns that no outlier has are 0 in the tiles of outliers, in that of the weight from the start. No marks are set.
template <class Shape>
__device__ void clear_outliers(uint32_t window) {
  const auto clear = [&](uint32_t begin, int bytes) {
    for (int i = static_cast<int>(threadIdx.x) * 16; i < bytes; i += Shape::kThreads * 16) {
      store_shared(window + begin + i, make_uint4(0, 0, 0, 0));
    }
  };
  clear(Shape::kOutlierWeight, Shape::kRows * 128);
  clear(Shape::kMarks, Shape::kMarkBytes);
}

// The first outlier columns and their count, as the quantizer has listed them, into shared memory. Behind the last
// there is -1, as an unsigned number beyond all.
template <class Shape>
__device__ void bring_list(const Int8WgmmaArgs& args, uint32_t window, int thread) {
  if (thread <= kOutlierValues) {
    const uint32_t column = thread < min(args.k, kOutlierValues) ? static_cast<uint32_t>(args.columns[thread]) : ~0U;
    store_shared(window + Shape::kList + thread * 4, column);
  }
  if (thread == kOutlierValues + 1) store_shared(window + Shape::kCount, *args.count);
  group_sync(kInt8OutlierBarrier, Shape::kOutlierThreads);
}

// With marks: those of all blocks of the quantizer into shared memory, by the computing warps, which still wait.
template <class Shape>
__device__ void merge_marks(const Int8WgmmaArgs& args, uint32_t window) {
  constexpr int kBatch = 4;  // loads in flight
  const int thread = static_cast<int>(threadIdx.x) - 128;
  const int vectors = (args.k + 127) / 128;
  const int step = Shape::kComputeThreads / vectors;
  const int vector = thread % vectors;
  uint4 marks = make_uint4(0, 0, 0, 0);
  wait_for_kernels_before();
#pragma unroll 1
  for (int first = thread / vectors; first < args.markers; first += kBatch * step) {
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i * step >= args.markers) continue;
      const uint4 own =
          *reinterpret_cast<const uint4*>(args.marks + (first + i * step) * args.mark_pitch + vector * 16);
      marks.x |= own.x, marks.y |= own.y, marks.z |= own.z, marks.w |= own.w;
    }
  }
  auto* const to = static_cast<uint32_t*>(__cvta_shared_to_generic(window + Shape::kMarks + vector * 16));
  if (marks.x != 0) atomicOr(to, marks.x);
  if (marks.y != 0) atomicOr(to + 1, marks.y);
  if (marks.z != 0) atomicOr(to + 2, marks.z);
  if (marks.w != 0) atomicOr(to + 3, marks.w);
  group_arrive(kInt8MarksBarrier, Shape::kComputeThreads + Shape::kOutlierThreads);
}

// The list and the count from those marks. A list that is longer goes to memory, from every block the same.
template <class Shape>
__device__ void make_list(const Int8WgmmaArgs& args, uint32_t window, int thread) {
  if (thread <= kOutlierValues) store_shared(window + Shape::kList + thread * 4, ~0U);
  const int vectors = (args.k + 127) / 128;
  group_sync(kInt8MarksBarrier, Shape::kComputeThreads + Shape::kOutlierThreads);
  if (thread < 32) {
    const int words = (vectors * 4 + 31) / 32;  // of a lane
    const auto word = [&](int i) {
      const int at = thread * words + i;
      return at < vectors * 4 ? load_shared<uint32_t>(window + Shape::kMarks + at * 4) : 0;
    };
    int own = 0;
#pragma unroll 1
    for (int i = 0; i < words; ++i) own += __popc(word(i));
    int up_to = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(~0U, up_to, step);
      if (thread >= step) up_to += other;
    }
    const int count = __shfl_sync(~0U, up_to, 31);
    int at = up_to - own;
#pragma unroll 1
    for (int i = 0; i < words; ++i) {
#pragma unroll 1
      for (uint32_t bits = word(i); bits != 0; bits &= bits - 1, ++at) {
        const int column = (thread * words + i) * 32 + __ffs(static_cast<int>(bits)) - 1;
        if (at < kOutlierValues) store_shared(window + Shape::kList + at * 4, column);
        if (count > kOutlierValues) args.columns[at] = column;
      }
    }
    if (thread == 0) store_shared(window + Shape::kCount, count);
  }
  group_sync(kInt8OutlierBarrier, Shape::kOutlierThreads);
}

// The first outlier columns in their order, to which a warp comes stage by stage.
template <class Shape>
class ListedColumns {
 public:
  __device__ explicit ListedColumns(uint32_t window) : list_(window + Shape::kList) {
    low_ = at(static_cast<int>(threadIdx.x) % 32);
    high_ = at(static_cast<int>(threadIdx.x) % 32 + 32);
  }

  __device__ void start(int stage) {
    const auto begin = static_cast<uint32_t>(stage * LinearInt8Wgmma::kDepth);
    index_ = __popc(__ballot_sync(~0U, low_ < begin)) + __popc(__ballot_sync(~0U, high_ < begin));
    next_ = at(index_);
  }

  // Calls f(column in the stage, place in the list) for those of a stage, the next one after start or another call.
  template <class F>
  __device__ bool visit(int stage, F f) {
    bool any = false;
    while (next_ - stage * LinearInt8Wgmma::kDepth < LinearInt8Wgmma::kDepth) {
      const auto k = static_cast<int>(next_ - stage * LinearInt8Wgmma::kDepth);
      next_ = at(index_ + 1);  // before it is wanted
      f(k, index_);
      ++index_;
      any = true;
    }
    return any;
  }

 private:
  __device__ uint32_t at(int j) const { return load_shared<uint32_t>(list_ + j * 4); }

  uint32_t list_;
  uint32_t low_;
  uint32_t high_;
  uint32_t next_ = 0;
  int index_ = 0;
};

// The weight's codes in the first outlier columns, picked by a warp from the ring as it goes by, for the block that
// finishes the tile, the first of its cluster.
template <class Shape>
__device__ void pick_outliers(const Int8WgmmaArgs& args, uint32_t window) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t to = cluster_address(window + Shape::kOutlierWeight, 0);
  ListedColumns<Shape> list(window);
  bool first = true;
  Int8Slot<Shape> slot;
  for_tiles<Shape>(args, [&](const Int8Tile& tile) {
    if (!first) barrier_wait(window + Shape::kOutliersUsed, tile.parity ^ 1);
    first = false;
    list.start(tile.begin);
    for (int stage = tile.begin; stage < tile.end; ++stage) {
      const uint32_t codes = window + slot.index * Shape::kStageBytes;
      barrier_wait(window + Shape::kFull + slot.index * 8, slot.parity);
      list.visit(stage, [&](int k, int j) {
        int8_t code[Shape::kRows / 32];
#pragma unroll
        for (int i = 0; i < Shape::kRows / 32; ++i) {
          const int n = lane + i * 32;
          code[i] = load_shared<int8_t>(codes + n * 128 + (k / 16 ^ (n & 7)) * 16 + k % 16);
        }
#pragma unroll
        for (int i = 0; i < Shape::kRows / 32; ++i) {
          const auto value = static_cast<uint16_t>(pack<typename Shape::T>(static_cast<float>(code[i]), 0.0F));
          const uint32_t place = outlier_place(lane + i * 32, j);
          args.splits > 1 ? store_cluster(to + place, value)
                          : store_shared(window + Shape::kOutlierWeight + place, value);
        }
      });
      __syncwarp();
      if (lane == 0) barrier_arrive(window + Shape::kEmpty + slot.index * 8);
      slot.next();
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(window + Shape::kPicked);
  });
}

// With marks: makes x's codes in outlier columns 0, by a warp, before they are multiplied.
template <class Shape>
__device__ void clear_outlier_codes(const Int8WgmmaArgs& args, uint32_t window) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool listed = load_shared<int>(window + Shape::kCount) <= kOutlierValues;
  ListedColumns<Shape> list(window);
  Int8Slot<Shape> slot;
  for_tiles<Shape>(args, [&](const Int8Tile& tile) {
    list.start(tile.begin);
    for (int stage = tile.begin; stage < tile.end; ++stage) {
      const uint32_t codes = window + slot.index * Shape::kStageBytes + Shape::kWeightBytes;
      const auto clear = [&](int k) {
        for (int m = lane; m < Shape::kColumns; m += 32) {
          store_shared(codes + m * 128 + (k / 16 ^ (m & 7)) * 16 + k % 16, int8_t{0});
        }
      };
      barrier_wait(window + Shape::kFull + slot.index * 8, slot.parity);
      bool any = list.visit(stage, [&](int k, int) { clear(k); });
      if (!listed) {
#pragma unroll 1
        for (int w = 0; w < 4; ++w) {
          uint32_t bits = load_shared<uint32_t>(window + Shape::kMarks + stage * 16 + w * 4);
          for (; bits != 0; bits &= bits - 1) clear(w * 32 + __ffs(static_cast<int>(bits)) - 1);
        }
        any = true;
      }
      if (any) fence_shared();
      __syncwarp();
      if (lane == 0) barrier_arrive(window + Shape::kReady + slot.index * 8);
      slot.next();
    }
  });
}

// With marks: x in the first outlier columns, brought by a warp.
template <class Shape>
__device__ void bring_outlier_x(const Int8WgmmaArgs& args, uint32_t window) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int count = min(load_shared<int>(window + Shape::kCount), kOutlierValues);
  const auto list = [&](int j) { return load_shared<int>(window + Shape::kList + j * 4); };
  bool first = true;
  for_tiles<Shape>(args, [&](const Int8Tile& tile) {
    if (!first) barrier_wait(window + Shape::kOutliersUsed, tile.parity ^ 1);
    first = false;
    gather_outliers<typename Shape::T>(static_cast<const uint16_t*>(args.x_values), tile.m0, args.m, Shape::kColumns,
                                       window + Shape::kOutlierX, args.k, list, 0, count, lane, 32);
    fence_shared();
    __syncwarp();
    if (lane == 0) barrier_arrive(window + Shape::kOutlierXFull);
  });
}

// What the three warps do that bring outliers.
template <class Shape>
__device__ void bring_outliers(const Int8WgmmaArgs& args, uint32_t window) {
  const int thread = static_cast<int>(threadIdx.x) - 32;
  wait_for_kernels_before();
  args.marks == nullptr ? bring_list<Shape>(args, window, thread) : make_list<Shape>(args, window, thread);
  if (thread < 32) {
    pick_outliers<Shape>(args, window);
  } else if (args.marks == nullptr) {
    return;
  } else if (thread < 64) {
    clear_outlier_codes<Shape>(args, window);
  } else if (cluster_rank() == 0) {
    bring_outlier_x<Shape>(args, window);
  }
}

}  // namespace qbits::cuda
