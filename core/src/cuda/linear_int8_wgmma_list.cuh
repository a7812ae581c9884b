#pragma once

#include "cuda/int8_mma_ptx.cuh"
#include "cuda/linear_int8_wgmma_outliers.cuh"

// Blocks that list outlier columns by themselves, from what the quantizer has marked, while they multiply: a kernel
// between the two would take longer. These columns are still in the codes of x. Their integer products are taken back
// at the end, before those of x's own numbers join in the order in which other kernels add them.
//
// Little that waits for something else: a load takes a microsecond while the weight comes in, and an instruction of a
// single warp some ten clocks.

namespace qbits::cuda {

// Adds marks, by the computing threads, to the block's, which are clear: a lane for 16 bytes of each 512 of a row.
template <class Shape>
__device__ void merge_marks(const Int8Marks& from, uint32_t window, int thread) {
  constexpr int kBatch = 8;  // loads in flight
  const int chunks = static_cast<int>(from.pitch + 511) / 512;
  const int rows = Shape::kComputeThreads / 32 / chunks;  // at once
  const int first = thread / 32 / chunks;
  const int at = (thread / 32 - first * chunks) * 512 + thread % 32 * 16;
  if (first >= rows || at >= from.pitch) return;
  uint4 marks = make_uint4(0, 0, 0, 0);
#pragma unroll 1
  for (int row = first; row < from.count; row += kBatch * rows) {
    uint4 own[kBatch] = {};
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int r = row + i * rows;
      if (r < from.count) own[i] = *reinterpret_cast<const uint4*>(from.marks + r * from.pitch + at);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      marks.x |= own[i].x, marks.y |= own[i].y, marks.z |= own[i].z, marks.w |= own[i].w;
    }
  }
  auto* const to = static_cast<uint32_t*>(__cvta_shared_to_generic(window + Shape::kMarks + at));
  atomicOr(to, marks.x);
  atomicOr(to + 1, marks.y);
  atomicOr(to + 2, marks.z);
  atomicOr(to + 3, marks.w);
}

// Listed columns that are kept together, by number of that batch: the first from the start, further ones in the ring
// once it has been read. Those beyond its room take turns in the last place.
template <class Shape>
struct OutlierBatch {
  uint32_t numbers;
  uint32_t list;

  __device__ OutlierBatch(uint32_t window, int i) {
    const uint32_t more = window + Shape::kMore + (min(i, Shape::kBatches - 1) - 1) * Shape::kMoreBytes;
    numbers = i == 0 ? window + Shape::kOutlierNumbers : more;
    list = i == 0 ? window + Shape::kList : more + Shape::kOutlierBytes;
  }
};

// A batch's list of marked columns, from number `first` on, and the count of all, by a warp.
template <class Shape>
__device__ void list_columns(int pitch, int first, uint32_t list, uint32_t window) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int words = pitch / 4;              // a multiple of 4
  const int own = (words + 127) / 128 * 4;  // of a lane, one after the other
  const int end = min(lane * own + own, words);
  int count = 0;
#pragma unroll 1
  for (int i = lane * own; i < end; i += 4) {
    const uint4 v = load_shared<uint4>(window + Shape::kMarks + i * 4);
    count += __popc(v.x) + __popc(v.y) + __popc(v.z) + __popc(v.w);
  }
  // How many come before the lane's, and how many there are: bit by bit of the counts.
  int at = -first;
  int all = 0;
#pragma unroll 1
  for (int bit = 0; __any_sync(~0U, count >> bit != 0); ++bit) {
    const uint32_t lanes = __ballot_sync(~0U, (count >> bit & 1) != 0);
    at += __popc(lanes & ((1U << lane) - 1)) << bit;
    all += __popc(lanes) << bit;
  }
  if (count > 0) {
#pragma unroll 1
    for (int i = lane * own; i < end && at < Shape::kOutlierColumns; ++i) {
      auto bits = load_shared<uint32_t>(window + Shape::kMarks + i * 4);
      if (at + __popc(bits) <= 0) {
        at += __popc(bits);
        continue;
      }
#pragma unroll 1
      for (; bits != 0; bits &= bits - 1, ++at) {
        if (at < 0 || at >= Shape::kOutlierColumns) continue;
        store_shared(list + at * 4, i * 32 + __ffs(static_cast<int>(bits)) - 1);
      }
    }
  }
  if (lane == 0) store_shared(window + Shape::kCount, all);
}

// What is kept of a batch: codes of the weight and, in rows behind, of x; x as words that hold its numbers.
template <class Shape>
struct OutlierNumbers {
  using Batch = OutlierBatch<Shape>;
  static constexpr int kCodePitch = Shape::kOutlierColumns + 4;     // so that rows lie in different banks
  static constexpr int kXPitch = (Shape::kOutlierColumns + 4) * 4;  // the same of eight rows
  static constexpr uint32_t kX = (Shape::kRows + Shape::kColumns) * kCodePitch;
  static_assert(kX + Shape::kColumns * kXPitch <= Shape::kOutlierBytes && kX % 8 == 0);

  // Picks the codes in the first outlier columns from the ring as they go by. Two warps take stages by turns; a stage's
  // columns are 16 bytes of marks. What is known of 64 stages is found out at once, a lane for two.
  static __device__ void pick_codes(const Int8WgmmaArgs& args, uint32_t window, int warp) {
    constexpr int kCodeRows = Shape::kRows + Shape::kColumns;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const uint32_t swizzle = lane % 8 * 16;
    const auto pick = [&](uint32_t slot, uint32_t byte, uint32_t j) {
      const uint32_t from = window + slot * Shape::kStageBytes + lane * 128 + (byte ^ swizzle);
      const uint32_t to = window + Shape::kOutlierNumbers + lane * kCodePitch + j;
#pragma unroll
      for (int row = 0; row < kCodeRows; row += 32) {
        if (row + lane >= kCodeRows) break;
        store_shared(to + row * kCodePitch, load_shared<int8_t>(from + row * 128));
      }
    };
    uint32_t slot = warp;
    uint32_t parity = 0;
    int before = 0;
#pragma unroll 1
    for (int base = 0; base < args.stages; base += 64) {
      const StageMarks marks(window + Shape::kMarks + (base + lane * 2) * 16, warp, before);
#pragma unroll 1
      for (int stage = base + warp; stage < min(args.stages, base + 64); stage += 2) {
        const uint32_t known = marks.of((stage - base) / 2);
        barrier_wait(window + Shape::kFull + slot * 8, parity);
        if (const uint32_t count = known >> 8 & 255; count > 0) {
          const uint32_t j = known >> 16;
          pick(slot, known & 255, j);
          if (count > 1) {
            uint32_t at = j;
#pragma unroll 1
            for (int i = 0; i < 4; ++i) {
              uint32_t bits = load_shared<uint32_t>(window + Shape::kMarks + stage * 16 + i * 4);
#pragma unroll 1
              for (; bits != 0 && at < Shape::kOutlierColumns; bits &= bits - 1, ++at) {
                if (at > j) pick(slot, i * 32 + __ffs(static_cast<int>(bits)) - 1, at);
              }
            }
          }
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(window + Shape::kEmpty + slot * 8);
        slot += 2;
        if (slot >= Shape::kStages) {
          slot -= Shape::kStages;
          parity ^= 1;
        }
      }
    }
    barrier_arrive(window + Shape::kPicked);
  }

  // Loads the codes of `count` columns listed, by `warps` warps: a lane for a column.
  static __device__ void load_codes(const Int8WgmmaArgs& args, const Int8Tile& tile, const Batch& batch, int count,
                                    int warp, int warps) {
    const auto load = [&](const int8_t* codes, int rows, int first) {
      for (int j = static_cast<int>(threadIdx.x) % 32; j < count; j += 32) {
        const auto column = load_shared<uint32_t>(batch.list + j * 4);
        for (int row = warp; row < rows; row += warps) {
          store_shared(batch.numbers + (first + row) * kCodePitch + j, codes[int64_t{row} * args.k + column]);
        }
      }
    };
    load(args.codes + int64_t{tile.n0} * args.k, min(args.n - tile.n0, Shape::kRows), 0);
    // Rows of codes are k apart, a multiple of 16 here.
    load(args.listing.x_codes + int64_t{tile.m0} * args.k, min(args.m - tile.m0, Shape::kColumns), Shape::kRows);
  }

  // Starts copies of the words that hold x, by `warps` warps: a lane for a row. Blocks begin at different columns, lest
  // all ask the L2 for the same at once.
  static __device__ void copy_x(const Int8WgmmaArgs& args, const Int8Tile& tile, const Batch& batch, int count,
                                int warp, int warps) {
    const int rows = min(args.m - tile.m0, Shape::kColumns);
    for (int row = warp * 32 + static_cast<int>(threadIdx.x) % 32; row < rows; row += warps * 32) {
      const auto* const x = static_cast<const uint16_t*>(args.x_values) + int64_t{tile.m0 + row} * args.k;
      const uint32_t to = batch.numbers + kX + row * kXPitch;
      int j = count > 0 ? static_cast<int>(blockIdx.x) % count : 0;
#pragma unroll 4
      for (int i = 0; i < count; ++i) {
        copy_word(to + j * 4, x + load_shared<uint32_t>(batch.list + j * 4) / 2 * 2);
        if (++j == count) j = 0;
      }
    }
  }

  // Adds the products of x's codes in a batch's `count` columns. `row`: of the weight, in the tile, the first of the
  // thread's two in a fragment; `first_x`: the first row of x.
  template <int kSums>
  static __device__ void multiply_codes(const Batch& batch, int row, int first_x, int count, int32_t (&dots)[kSums]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
    for (int first = 0; first < count; first += 32) {
      const int j = first + lane % 4 * 4;
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // Behind the last column a is 0, and b whatever lies there.
        const uint32_t mask = __funnelshift_lc(~0U, 0, max(count - j - i / 2 * 16, 0) * 8);
        a[i] = load_shared<uint32_t>(batch.numbers + (row + i % 2 * 8) * kCodePitch + j + i / 2 * 16) & mask;
      }
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        const uint32_t b = batch.numbers + (Shape::kRows + first_x + i * 2 + lane / 4) * kCodePitch + j;
        mma_16x8x32<MmaIsa::Sm80>(reinterpret_cast<int32_t (&)[4]>(dots[i]), a, load_shared<uint32_t>(b),
                                  load_shared<uint32_t>(b + 16));
      }
    }
  }

  // The same with x's own numbers. Bits are those of `multiply_outliers`, for Hopper adds sixteen products to a sum at
  // once by mma.sync as by wgmma.
  template <int kSums>
  static __device__ void multiply(const Batch& batch, int row, int first_x, int count, float (&sums)[kSums]) {
    using T = typename Shape::T;
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
    for (int first = 0; first < count; first += 16) {
      const Columns columns[2] = {{batch.list, first + lane % 4 * 2, count},
                                  {batch.list, first + 8 + lane % 4 * 2, count}};
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = columns[i / 2].template codes<T>(batch.numbers + (row + i % 2 * 8) * kCodePitch);
      }
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        const uint32_t x = batch.numbers + kX + (first_x + i * 2 + lane / 4) * kXPitch;
        mma_16x8x16<T>(reinterpret_cast<float (&)[4]>(sums[i]), a, columns[0].numbers(x), columns[1].numbers(x));
      }
    }
  }

 private:
  // What a warp's lanes know of its stages, of which each lane has one of two.
  class StageMarks {
   public:
    // `marks`: of the lane's two stages; `before`: how many columns come before them all, which those of all increase.
    __device__ StageMarks(uint32_t marks, int which, int& before) {
      const int lane = static_cast<int>(threadIdx.x) % 32;
      const auto first = load_shared<uint4>(marks);
      const auto second = load_shared<uint4>(marks + 16);
      const auto count = [](const uint4& v) { return __popc(v.x) + __popc(v.y) + __popc(v.z) + __popc(v.w); };
      int up_to = count(first) + count(second);
      const int both = up_to;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0U, up_to, step);
        if (lane >= step) up_to += other;
      }
      const uint4 own = which == 0 ? first : second;
      const int j = before + up_to - both + (which == 0 ? 0 : count(first));
      const int word = own.x != 0 ? 0 : own.y != 0 ? 1 : own.z != 0 ? 2 : 3;
      const uint32_t bits = word == 0 ? own.x : word == 1 ? own.y : word == 2 ? own.z : own.w;
      // The first column, how many there are of those that are kept, and the number of the first.
      const int kept = max(0, min(count(own), Shape::kOutlierColumns - j));
      packed_ = static_cast<uint32_t>(word * 32 + __ffs(static_cast<int>(bits)) - 1) & 255 | kept << 8 | j << 16;
      before += __shfl_sync(~0U, up_to, 31);
    }
    __device__ uint32_t of(int lane) const { return __shfl_sync(~0U, packed_, lane); }

   private:
    uint32_t packed_;
  };

  // Two listed columns, j and j + 1, of `count`; their numbers are 0 behind the last.
  struct Columns {
    __device__ Columns(uint32_t list, int j, int count)
        : j(j),
          first(j < count ? 0x7440 : 0x7445),
          second(j + 1 < count ? 0x7441 : 0x7445),
          mask((j < count ? 0xffff : 0) | (j + 1 < count ? 0xffff0000 : 0)) {
      const auto listed = load_shared<uint2>(list + j * 4);
      halves = 0x5410 + (listed.x & 1) * 0x22 + (listed.y & 1) * 0x2200;
    }
    // A code plus 128 as the low byte of 2^23: less instructions than a conversion.
    template <class T>
    __device__ uint32_t codes(uint32_t row) const {
      const uint32_t pair = load_shared<uint16_t>(row + j) ^ 0x8080U;
      constexpr uint32_t kBytes = 0x4b008000;
      constexpr float kZero = 0x1p23F + 128.0F;
      return pack<T>(__uint_as_float(__byte_perm(pair, kBytes, first)) - kZero,
                     __uint_as_float(__byte_perm(pair, kBytes, second)) - kZero);
    }
    __device__ uint32_t numbers(uint32_t row) const {
      const auto words = load_shared<uint2>(row + j * 4);
      return __byte_perm(words.x, words.y, halves) & mask;
    }

    int j;
    uint32_t first;
    uint32_t second;
    uint32_t mask;
    uint32_t halves;
  };
};

// By the warps beside the one that loads: two pick codes, one lists columns and copies x.
template <class Shape>
__device__ void list_outliers(const Int8WgmmaArgs& args, uint32_t window) {
  wait_for_kernels_before();
  const int warp = static_cast<int>(threadIdx.x) / 32 - 1;
  group_sync(kInt8MarksBarrier, Shape::kThreads - 32);  // marks are there
  if (warp < 2) return OutlierNumbers<Shape>::pick_codes(args, window, warp);
  const OutlierBatch<Shape> batch(window, 0);
  list_columns<Shape>(static_cast<int>(args.listing.marks.pitch), 0, batch.list, window);
  __syncwarp();
  barrier_arrive(window + Shape::kPicked);
  const int count = min(load_shared<int>(window + Shape::kCount), Shape::kOutlierColumns);
  OutlierNumbers<Shape>::copy_x(args, first_tile<Shape>(args), batch, count, 0, 1);
  copies_arrive(window + Shape::kOutlierXFull);
}

// Calls f(batch, count) for each batch of `all` columns listed, `again` where that was done before. The warps that
// finish the tile, of which this is number `warp`, bring what is not there.
template <class Shape, class F>
__device__ void for_batches(const Int8WgmmaArgs& args, const Int8Tile& tile, uint32_t window, int warp, int all,
                            bool again, F f) {
  constexpr int kThreads = Shape::kFinishThreads;
  const bool turns = all > Shape::kBatches * Shape::kOutlierColumns;
  int i = 0;
#pragma unroll 1
  for (int first = 0; first < all; first += Shape::kOutlierColumns, ++i) {
    const OutlierBatch<Shape> batch(window, i);
    const int count = min(all - first, Shape::kOutlierColumns);
    if (again ? turns && i >= Shape::kBatches - 1 : i > 0) {
      group_sync(kInt8ComputeBarrier, kThreads);
      if (warp == 0) list_columns<Shape>(static_cast<int>(args.listing.marks.pitch), first, batch.list, window);
      group_sync(kInt8ComputeBarrier, kThreads);
      OutlierNumbers<Shape>::load_codes(args, tile, batch, count, warp, kThreads / 32);
      OutlierNumbers<Shape>::copy_x(args, tile, batch, count, warp, kThreads / 32);
      copy_async_commit();
      copy_async_wait_for<0>();
      group_sync(kInt8ComputeBarrier, kThreads);
    }
    f(batch, count);
  }
}

}  // namespace qbits::cuda
