#pragma once

#include <algorithm>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/linear_4bit_slab_writer.cuh"
#include "cuda/linear_int8_wgmma_list.cuh"
#include "cuda/linear_int8_wgmma_load.cuh"

// linear_int8 on Hopper. A block computes tiles of 128 or 64 weight rows by kColumns rows of x, or a share of one's
// depth: one warp brings codes of both through a ring of shared memory, two warpgroups multiply 64 weight rows each,
// or, of a 64-row tile, the same rows in every second stage. Sums are integers, so shares add up exactly in any order.
// Products with outlier columns join at the end, in float32: a sum begins with the scaled product of codes, and columns
// are added in ascending order, one by one those of float32, and sixteen at a time, by a tensor core, those of bfloat16
// or float16, in which codes are exact. So a row of out is the same whichever plan computes it.

namespace qbits::cuda {

template <class Shape>
class Int8Computer {
 public:
  using T = typename Shape::T;
  static constexpr int kSums = Shape::kSums;
  static constexpr int kFinishSums = Shape::kFinishColumns / 2;

  __device__ Int8Computer(const Int8WgmmaArgs& args, uint32_t window)
      : args_(args),
        window_(window),
        group_(static_cast<int>(threadIdx.x - 128) / 128 % Shape::kRowGroups),
        depth_group_(static_cast<int>(threadIdx.x - 128) / 128 / Shape::kRowGroups),
        thread_(static_cast<int>(threadIdx.x) % 128) {}

  // Whether this warpgroup has sums of the tile in the end.
  __device__ bool finishes() const {
    return depth_group_ < Shape::kFinishShares && (args_.splits == 1 || cluster_rank() == 0);
  }

  // Begins a tile with what is known of its weight.
  __device__ void start(const Int8Tile& tile) {
    tile_ = tile;
    row_ = tile.n0 + group_ * 64 + thread_ / 32 * 16 + thread_ % 32 / 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int n = row_ + r * 8;
      scale_[r] = n < args_.n ? args_.scales[n] : 0.0F;
      bias_[r] = args_.bias != nullptr && n < args_.n ? static_cast<const T*>(args_.bias)[n] : from_float<T>(0.0F);
    }
  }

  // The integer sums of the tile's stages, or of every second.
  __device__ void multiply(int32_t (&dots)[kSums]) {
    constexpr int kSteps = LinearInt8Wgmma::kDepth / 32;
    // Products that wait for one another's sums take longer than small ones need: two sets of sums.
    constexpr int kSets = Shape::kColumns <= 64 ? 2 : 1;
    int32_t second[kSets == 2 ? kSums : 1] = {};
    int before = 0;
    const int first = tile_.begin + depth_group_;
    if (depth_group_ > 0) slot_.next();
    pin_int8(dots);
    if constexpr (kSets == 2) pin_int8(second);
    for (int stage = first; stage < tile_.end; stage += Shape::kDepthGroups) {
      barrier_wait(window_ + Shape::kFull + slot_.index * 8, slot_.parity);
      const uint32_t at = window_ + slot_.index * Shape::kStageBytes;
      const uint64_t weight = tile_descriptor(at + group_ * (64 * LinearInt8Wgmma::kDepth));
      const uint64_t x = tile_descriptor(at + Shape::kWeightBytes);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if constexpr (kSets == 2) {
          wgmma_int8(i % 2 == 0 ? dots : second, weight + i * 2, x + i * 2);
        } else {
          wgmma_int8(dots, weight + i * 2, x + i * 2);
        }
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (stage > first && thread_ % 32 == 0) barrier_arrive(window_ + Shape::kEmpty + before * 8);
      before = slot_.index;
      for (int i = 0; i < Shape::kDepthGroups; ++i) slot_.next();
    }
    wgmma_wait<0>();
    pin_int8(dots);
    if constexpr (kSets == 2) {
      pin_int8(second);
#pragma unroll
      for (int i = 0; i < kSums; ++i) dots[i] += second[i];
    }
    if (first < tile_.end && thread_ % 32 == 0) barrier_arrive(window_ + Shape::kEmpty + before * 8);
  }

  // `own` becomes the tile's sums, of the columns that this warpgroup finishes: those of the cluster's blocks, or of
  // the block's warpgroups that share the depth. False in those that finish none. All threads take part.
  __device__ bool add_parts(const int32_t (&dots)[kSums], int32_t (&own)[kFinishSums]) const {
    if constexpr (Shape::kDepthGroups == 2) {
      constexpr int kOther = Shape::kFinishShares == 2 ? kFinishSums : 0;
      const bool first = depth_group_ == 0;
      if constexpr (Shape::kLists) barrier_wait(window_ + Shape::kPicked, 0);  // the ring has been read
      if (!first || kOther > 0) {
        const uint32_t to = left_by(depth_group_);
#pragma unroll
        for (int i = 0; i < kFinishSums; i += 4) {
          const auto other = [&](int j) { return first ? dots[kOther + i + j] : dots[i + j]; };
          store_shared(to + i * 512, make_int4(other(0), other(1), other(2), other(3)));
        }
      }
      group_sync(kInt8ComputeBarrier, Shape::kComputeThreads);
      if (!finishes()) return false;
      const uint32_t from = left_by(1 - depth_group_);
#pragma unroll
      for (int i = 0; i < kFinishSums; i += 4) {
        const int4 v = load_shared<int4>(from + i * 512);
        const auto mine = [&](int j) { return first ? dots[i + j] : dots[kOther + i + j]; };
        own[i] = mine(0) + v.x;
        own[i + 1] = mine(1) + v.y;
        own[i + 2] = mine(2) + v.z;
        own[i + 3] = mine(3) + v.w;
      }
    } else {
      if (args_.splits > 1 && !finishes()) leave(dots);
      if (args_.splits > 1) cluster_sync();
#pragma unroll
      for (int i = 0; i < kSums; ++i) own[i] = dots[i];
      if (args_.splits > 1) {
        if (finishes()) gather(own);
        cluster_sync();
      }
    }
    return finishes();
  }

  // What the quantizer leaves besides codes: the count of outliers, and scales of the tile's rows of x, of each its own
  // thread's.
  __device__ void load_scales() {
    if constexpr (Shape::kOutliers && !Shape::kLists) outliers_ = *args_.count;
    const int i = group_ * 128 + thread_;
    x_scale_ = i < Shape::kColumns && tile_.m0 + i < args_.m ? args_.x_scales[tile_.m0 + i] : 0.0F;
  }

  // These over 127, into shared memory.
  __device__ void store_scales() const {
    const int i = group_ * 128 + thread_;
    if (i < Shape::kColumns) store_shared(window_ + Shape::kScales + i * 4, __fdiv_rn(x_scale_, kInt8Max));
  }

  // out of the tile.
  __device__ void finish(const int32_t (&dots)[kFinishSums]) {
    float sums[kFinishSums];
    int32_t taken[kFinishSums] = {};
    if constexpr (Shape::kLists) take_back_listed(taken);
#pragma unroll
    for (int i = 0; i < kFinishSums; i += 4) {
      const float2 a = load_shared<float2>(window_ + Shape::kScales + column(i) * 4);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[i + j] = __fmaf_rn(j % 2 == 0 ? a.x : a.y, __int2float_rn(dots[i + j] - taken[i + j]), 0.0F);
      }
      // Else ptxas would load all scales first, into as many registers, and spill.
      if (kFinishSums > 64 && i % 32 == 28) group_sync(kInt8GroupBarrier + finisher(), 128);
    }
    if constexpr (Shape::kLists) {
      add_listed(sums);
    } else if constexpr (Shape::kPicks) {
      // Without outliers, too, so that no one gets a tile ahead.
      barrier_wait(window_ + Shape::kPicked, tile_.parity);
      barrier_wait(window_ + Shape::kOutlierXFull, tile_.parity);
      if (outliers_ > 0) add_outliers(sums);
      fence_shared();  // before the next tile's come the same way
      __syncwarp();
      if (thread_ % 32 == 0) barrier_arrive(window_ + Shape::kOutliersUsed);
    } else if constexpr (Shape::kOutliers) {
      add_outliers(sums);
    }
    scale_rows(sums);
    write(sums);
  }

 private:
  __device__ void leave(const int32_t (&dots)[kSums]) const {
    if constexpr (Shape::kPicks) barrier_wait(window_ + Shape::kPicked, 0);  // the ring has been read
#pragma unroll
    for (int i = 0; i < kSums; i += 4) {
      store_shared(place(i), make_int4(dots[i], dots[i + 1], dots[i + 2], dots[i + 3]));
    }
  }

  __device__ void gather(int32_t (&dots)[kSums]) const {
    for (int rank = 1; rank < args_.splits; ++rank) {
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        const float4 v = load_cluster(place(i), static_cast<uint32_t>(rank));
        dots[i] += __float_as_int(v.x);
        dots[i + 1] += __float_as_int(v.y);
        dots[i + 2] += __float_as_int(v.z);
        dots[i + 3] += __float_as_int(v.w);
      }
    }
  }
  __device__ uint32_t place(int i) const {
    return window_ + (i / 4 * Shape::kComputeThreads + group_ * 128 + thread_) * 16;
  }
  // Where a depth group's sums of the columns that the other finishes lie for it; one group alone leaves any unless
  // both finish.
  __device__ uint32_t left_by(int depth_group) const {
    return window_ + thread_ * 16 + (Shape::kFinishShares == 2 ? depth_group * kFinishSums * 512 : 0);
  }

  // The first column of fragment sums i to i + 3, which are of two columns of row_ and two of row_ + 8.
  __device__ int column(int i) const { return first_column() + i * 2 + thread_ % 4 * 2; }
  // The first of the columns that this warpgroup finishes, in the tile, and which it is of those that finish.
  __device__ int first_column() const { return Shape::kFinishShares == 2 ? depth_group_ * Shape::kFinishColumns : 0; }
  __device__ int finisher() const { return group_ + (Shape::kFinishShares == 2 ? depth_group_ : 0); }

  __device__ void add_outliers(float (&sums)[kFinishSums]) const {
    const int count = outliers_;
    if constexpr (std::is_same_v<T, float>) {
      const float* const x = static_cast<const float*>(args_.x_values);
      for (int c = 0; c < count; ++c) {
        const int k = args_.columns[c];
        const float code[2] = {code_of(row_, k), code_of(row_ + 8, k)};
#pragma unroll
        for (int i = 0; i < kFinishSums; i += 2) {
          const int m = tile_.m0 + i / 4 * 8 + thread_ % 4 * 2;
          const float x0 = m < args_.m ? x[int64_t{m} * args_.k + k] : 0.0F;
          const float x1 = m + 1 < args_.m ? x[int64_t{m + 1} * args_.k + k] : 0.0F;
          sums[i] = __fmaf_rn(x0, code[i / 2 % 2], sums[i]);
          sums[i + 1] = __fmaf_rn(x1, code[i / 2 % 2], sums[i + 1]);
        }
      }
    } else {
      const auto list = [&](int j) { return args_.columns[j]; };
      for (int first = 0; first < count; first += kOutlierValues) {
        if (first > 0) {  // beyond what the loading warps have brought
          group_sync(kInt8ComputeBarrier, Shape::kComputeThreads);
          const int thread = group_ * 128 + thread_;
          gather_outliers<T>(args_.codes, tile_.n0, args_.n, Shape::kRows, window_ + Shape::kOutlierWeight, args_.k,
                             list, first, count, thread, Shape::kComputeThreads);
          gather_outliers<T>(static_cast<const uint16_t*>(args_.x_values), tile_.m0, args_.m, Shape::kColumns,
                             window_ + Shape::kOutlierX, args_.k, list, first, count, thread, Shape::kComputeThreads);
          fence_shared();
          group_sync(kInt8ComputeBarrier, Shape::kComputeThreads);
        }
        multiply_outliers<T>(sums, window_ + Shape::kOutlierWeight, row_ - tile_.n0, window_ + Shape::kOutlierX,
                             min(count - first, kOutlierValues));
      }
    }
  }

  // The products of x's codes in the columns that the block has listed.
  __device__ void take_back_listed(int32_t (&taken)[kFinishSums]) const {
    barrier_wait(window_ + Shape::kPicked, 0);
    for_listed(false, [&](const OutlierBatch<Shape>& batch, int count) {
      OutlierNumbers<Shape>::multiply_codes(batch, row_ - tile_.n0, first_column(), count, taken);
    });
  }
  // Adds those of x itself.
  __device__ void add_listed(float (&sums)[kFinishSums]) const {
    barrier_wait(window_ + Shape::kOutlierXFull, 0);
    for_listed(true, [&](const OutlierBatch<Shape>& batch, int count) {
      OutlierNumbers<Shape>::multiply(batch, row_ - tile_.n0, first_column(), count, sums);
    });
  }
  template <class F>
  __device__ void for_listed(bool again, F f) const {
    const auto all = load_shared<int>(window_ + Shape::kCount);
    for_batches<Shape>(args_, tile_, window_, finisher() * 4 + thread_ / 32, all, again, f);
  }

  __device__ float code_of(int row, int k) const {
    return row < args_.n ? static_cast<float>(args_.codes[int64_t{row} * args_.k + k]) : 0.0F;
  }

  __device__ void scale_rows(float (&sums)[kFinishSums]) const {
    const float scale[2] = {__fdiv_rn(scale_[0], kInt8Max), __fdiv_rn(scale_[1], kInt8Max)};
    const float bias[2] = {to_float(bias_[0]), to_float(bias_[1])};
#pragma unroll
    for (int i = 0; i < kFinishSums; ++i) sums[i] = __fmaf_rn(scale[i / 2 % 2], sums[i], bias[i / 2 % 2]);
  }

  __device__ void write(const float (&sums)[kFinishSums]) const {
    if constexpr (std::is_same_v<T, float>) {
      float* const out = static_cast<float*>(args_.out);
#pragma unroll
      for (int i = 0; i < kFinishSums; ++i) {
        const int m = tile_.m0 + i / 4 * 8 + thread_ % 4 * 2 + i % 2;
        const int n = row_ + i / 2 % 2 * 8;
        if (m < args_.m && n < args_.n) out[int64_t{m} * args_.n + n] = from_float<float>(sums[i]);
      }
    } else {
      // Fragments are transposed through a slab of shared memory, so that 128 bytes of a row of out leave together.
      constexpr int kRows = Shape::kSlabRows;
      const uint32_t slab = window_ + Shape::kSlabs + finisher() * (kRows * 128);
      SlabWriter<T, 128> writer(args_.out, args_.n, tile_.m0 + first_column(), args_.m, tile_.n0 + group_ * 64,
                                thread_);
#pragma unroll
      for (int s = 0; s < Shape::kFinishColumns / kRows; ++s) {
        group_sync(kInt8GroupBarrier + finisher(), 128);  // what the slab held has been read
        put_in_slab<T, kRows>(sums + s * (kRows / 2), slab, 128, thread_);
        group_sync(kInt8GroupBarrier + finisher(), 128);
        writer.template write<kRows / 16>(slab);
      }
    }
  }

  const Int8WgmmaArgs& args_;
  Int8Tile tile_{};
  Int8Slot<Shape> slot_;
  uint32_t window_;
  int group_;        // of 64 rows of the weight
  int depth_group_;  // of those with the same rows
  int thread_;
  int row_ = 0;          // of the weight: the first of the thread's two in a fragment
  float scale_[2] = {};  // of both
  T bias_[2] = {};
  float x_scale_ = 0;
  int outliers_ = 0;
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    linear_int8_wgmma_kernel(const __grid_constant__ Int8WgmmaArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const uint32_t window = (shared_address(dynamic_shared()) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kStages; ++i) {
      barrier_init(window + Shape::kFull + i * 8, 1);
      barrier_init(window + Shape::kEmpty + i * 8, Shape::kReaders);
    }
    barrier_init(window + Shape::kPicked, Shape::kOutlierThreads);
    barrier_init(window + Shape::kOutlierXFull, Shape::kLists ? 32 : 1);
    barrier_init(window + Shape::kOutliersUsed, Shape::kComputeThreads / 32);
    barrier_init_fence();
    prefetch_map(&args.weight);
    prefetch_map(&args.x.whole);
  }
  if constexpr (Shape::kPicks) clear_shared<Shape>(window + Shape::kOutlierWeight, Shape::kRows * 128);
  if constexpr (Shape::kLists) clear_shared<Shape>(window + Shape::kMarks, Shape::kMarkBytes);
  __syncthreads();
  if (Shape::kPicks && args.splits > 1) cluster_sync();  // blocks write to the first one's memory
  if (threadIdx.x < 128) {
    leave_registers<Shape::kLoadRegisters>();
    if (threadIdx.x == 0) bring_stages<Shape>(args, window);
    if (threadIdx.x == 96) bring_first_x<Shape>(args, window);
    __syncwarp();
    if constexpr (Shape::kPicks) {
      if (threadIdx.x >= 32) pick_outliers<Shape>(args, window);
    }
    if constexpr (Shape::kLists) {
      if (threadIdx.x >= 32) list_outliers<Shape>(args, window);
    }
    if (args.splits > 1) {
      __syncwarp();
      cluster_sync();
      cluster_sync();
    }
    return;
  }
  take_registers<Shape::kComputeRegisters>();
  Int8Computer<Shape> computer(args, window);
  for_tiles<Shape>(args, [&](const Int8Tile& tile) {
    computer.start(tile);
    wait_for_kernels_before();
    if constexpr (Shape::kLists) {
      merge_marks<Shape>(args.listing.marks, window, static_cast<int>(threadIdx.x) - 128);
      __syncwarp();
      group_arrive(kInt8MarksBarrier, Shape::kThreads - 32);
    }
    computer.load_scales();
    int32_t dots[Shape::kSums] = {};
    computer.multiply(dots);
    group_sync(kInt8ComputeBarrier, Shape::kComputeThreads);  // the ring has been read, and the scales before
    if (computer.finishes()) computer.store_scales();
    int32_t own[Int8Computer<Shape>::kFinishSums];
    if (!computer.add_parts(dots, own)) return;
    group_sync(kInt8ComputeBarrier, Shape::kFinishThreads);
    computer.finish(own);
  });
#endif
}

// Runs the instantiation of a plan; each T has a file of its own.
template <class T>
void launch_linear_int8_wgmma(const Int8WgmmaArgs& args, const LinearInt8Plan& plan, Stream stream);
extern template void launch_linear_int8_wgmma<float>(const Int8WgmmaArgs&, const LinearInt8Plan&, Stream);
extern template void launch_linear_int8_wgmma<__nv_bfloat16>(const Int8WgmmaArgs&, const LinearInt8Plan&, Stream);
extern template void launch_linear_int8_wgmma<__half>(const Int8WgmmaArgs&, const LinearInt8Plan&, Stream);

}  // namespace qbits::cuda
