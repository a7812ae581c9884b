#pragma once

#include <algorithm>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/linear_4bit_slab_writer.cuh"
#include "cuda/linear_int8_wgmma_outliers.cuh"

// linear_int8 on Hopper. A block computes tiles of 128 weight rows by kColumns rows of x, or a share of one's depth:
// one warp brings codes of both through a ring of shared memory, two warpgroups multiply 64 weight rows each. Sums are
// integers, so shares add up exactly in any order. Products with outlier columns join at the end, as float32 sums of
// bfloat16 or float16 products: codes, up to 127 in magnitude, are exact in both.

namespace qbits::cuda {

// One thread brings all stages. The first of the weight need not wait: the quantizer, which alone may still run, writes
// none of it.
template <class Shape>
__device__ void bring_stages(const Int8WgmmaArgs& args, uint32_t window) {
  constexpr int kDepth = LinearInt8Wgmma::kDepth;
  const auto bring_weight = [&](const Int8Tile& tile, int stage, int slot) {
    const uint32_t full = window + Shape::kFull + slot * 8;
    barrier_arrive_expecting(full, Shape::kStageBytes);
    copy_box(window + slot * Shape::kStageBytes, &args.weight, stage * kDepth, tile.n0, full);
  };
  const auto bring_x = [&](const Int8Tile& tile, int stage, int slot) {
    copy_box(window + slot * Shape::kStageBytes + Shape::kWeightBytes, &args.x, stage * kDepth, tile.m0,
             window + Shape::kFull + slot * 8);
  };
  bool first = true;
  Int8Slot<Shape> slot{.parity = 1};  // all are free
  for_tiles<Shape>(args, [&](const Int8Tile& tile) {
    int stage = tile.begin;
    if (first) {
      const int count = min(tile.end - tile.begin, Shape::kStages);
      for (int i = 0; i < count; ++i) bring_weight(tile, stage + i, i);
      wait_for_kernels_before();
      for (int i = 0; i < count; ++i) bring_x(tile, stage + i, i);
      for (int i = 0; i < count; ++i) slot.next();
      stage += count;
    }
    for (; stage < tile.end; ++stage) {
      barrier_wait(window + Shape::kEmpty + slot.index * 8, slot.parity);
      bring_weight(tile, stage, slot.index);
      bring_x(tile, stage, slot.index);
      slot.next();
    }
    if constexpr (Shape::kOutlierTiles) {
      if (cluster_rank() == 0) {
        const uint32_t full = window + Shape::kOutlierXFull;
        if (!first) barrier_wait(window + Shape::kOutliersUsed, tile.parity ^ 1);
        barrier_arrive_expecting(full, Shape::kColumns * 128);
        copy_box(window + Shape::kOutlierX, &args.outliers, 0, tile.m0, full);
      }
    }
    first = false;
  });
}

template <class Shape>
class Int8Computer {
 public:
  using T = typename Shape::T;
  static constexpr int kSums = Shape::kSums;

  __device__ Int8Computer(const Int8WgmmaArgs& args, uint32_t window)
      : args_(args),
        window_(window),
        group_(static_cast<int>(threadIdx.x) / 128 - 1),
        thread_(static_cast<int>(threadIdx.x) % 128) {}

  // Begins a tile with what is known of its weight.
  __device__ void start(const Int8Tile& tile) {
    tile_ = tile;
    row_ = tile.n0 + group_ * 64 + thread_ / 32 * 16 + thread_ % 32 / 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int n = row_ + r * 8;
      scale_[r] = n < args_.n ? __fdiv_rn(args_.scales[n], kInt8Max) : 0.0F;
      bias_[r] = args_.bias != nullptr && n < args_.n ? to_float(static_cast<const T*>(args_.bias)[n]) : 0.0F;
    }
  }

  // The integer sums of the tile's stages.
  __device__ void multiply(int32_t (&dots)[kSums]) {
    int before = 0;
    pin_int8(dots);
    for (int stage = tile_.begin; stage < tile_.end; ++stage) {
      barrier_wait(window_ + Shape::kFull + slot_.index * 8, slot_.parity);
      const uint32_t at = window_ + slot_.index * Shape::kStageBytes;
      const uint64_t weight = tile_descriptor(at + group_ * (64 * LinearInt8Wgmma::kDepth));
      const uint64_t x = tile_descriptor(at + Shape::kWeightBytes);
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < LinearInt8Wgmma::kDepth / 32; ++i) {
        wgmma_int8(dots, weight + i * 2, x + i * 2, stage > tile_.begin || i > 0);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (stage > tile_.begin && thread_ % 32 == 0) barrier_arrive(window_ + Shape::kEmpty + before * 8);
      before = slot_.index;
      slot_.next();
    }
    wgmma_wait<0>();
    pin_int8(dots);
    if (thread_ % 32 == 0) barrier_arrive(window_ + Shape::kEmpty + before * 8);
  }

  // Leaves sums for the first block of the cluster, or, in that block, adds what the others leave. All threads of the
  // cluster take part in the two barriers.
  __device__ void leave(const int32_t (&dots)[kSums]) const {
    group_sync(kInt8ComputeBarrier, Shape::kComputeThreads);  // both have read the ring, and
    if constexpr (Shape::kOutlierTiles) barrier_wait(window_ + Shape::kPicked, 0);
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

  // What the quantizer leaves besides codes: scales of the tile's rows of x, over 127, into shared memory.
  __device__ void stage_scales() {
    if constexpr (Shape::kOutliers) outliers_ = *args_.count;
    const int i = group_ * 128 + thread_;
    if (i < Shape::kColumns) {
      const float scale = tile_.m0 + i < args_.m ? args_.x_scales[tile_.m0 + i] : 0.0F;
      store_shared(window_ + Shape::kScales + i * 4, __fdiv_rn(scale, kInt8Max));
    }
  }

  // out of the tile.
  __device__ void finish(const int32_t (&dots)[kSums]) const {
    float sums[kSums] = {};
    if constexpr (Shape::kOutliers && !Shape::kOutlierTiles) add_outliers(sums);
#pragma unroll
    for (int i = 0; i < kSums; i += 4) {
      const float2 a = load_shared<float2>(window_ + Shape::kScales + column(i) * 4);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[i + j] = __fmaf_rn(j % 2 == 0 ? a.x : a.y, __int2float_rn(dots[i + j]), sums[i + j]);
      }
      // Else ptxas would load all scales first, into as many registers, and spill.
      if (kSums > 64 && i % 32 == 28) group_sync(kInt8GroupBarrier + group_, 128);
    }
    if constexpr (Shape::kOutlierTiles) {
      // Without outliers, too, so that no one gets a tile ahead.
      barrier_wait(window_ + Shape::kPicked, tile_.parity);
      barrier_wait(window_ + Shape::kOutlierXFull, tile_.parity);
      if (outliers_ > 0) add_outliers(sums);
      fence_shared();  // before the next tile's come the same way
      __syncwarp();
      if (thread_ % 32 == 0) barrier_arrive(window_ + Shape::kOutliersUsed);
    }
    scale_rows(sums);
    write(sums);
  }

 private:
  // The first column of fragment sums i to i + 3, which are of two columns of row_ and two of row_ + 8.
  __device__ int column(int i) const { return i * 2 + thread_ % 4 * 2; }
  __device__ uint32_t place(int i) const {
    return window_ + (i / 4 * Shape::kComputeThreads + group_ * 128 + thread_) * 16;
  }

  __device__ void add_outliers(float (&sums)[kSums]) const {
    const int count = outliers_;
    if constexpr (std::is_same_v<T, float>) {
      const float* const x = static_cast<const float*>(args_.x_values);
      for (int c = 0; c < count; ++c) {
        const int k = args_.columns[c];
        const float code[2] = {code_of(row_, k), code_of(row_ + 8, k)};
#pragma unroll
        for (int i = 0; i < kSums; i += 2) {
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

  __device__ float code_of(int row, int k) const {
    return row < args_.n ? static_cast<float>(args_.codes[int64_t{row} * args_.k + k]) : 0.0F;
  }

  __device__ void scale_rows(float (&sums)[kSums]) const {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = __fmaf_rn(scale_[i / 2 % 2], sums[i], bias_[i / 2 % 2]);
  }

  __device__ void write(const float (&sums)[kSums]) const {
    if constexpr (std::is_same_v<T, float>) {
      float* const out = static_cast<float*>(args_.out);
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        const int m = tile_.m0 + i / 4 * 8 + thread_ % 4 * 2 + i % 2;
        const int n = row_ + i / 2 % 2 * 8;
        if (m < args_.m && n < args_.n) out[int64_t{m} * args_.n + n] = from_float<float>(sums[i]);
      }
    } else {
      // Fragments are transposed through a slab of shared memory, so that 128 bytes of a row of out leave together.
      constexpr int kRows = Shape::kSlabRows;
      const int warp = thread_ / 32;
      const int lane = thread_ % 32;
      const uint32_t slab = window_ + Shape::kSlabs + group_ * (kRows * 128);
      SlabWriter<T> writer(args_.out, args_.n, tile_.m0, args_.m, tile_.n0 + group_ * 64, thread_);
      const int place = thread_ / 8 * 128 + (thread_ % 8 ^ (thread_ / 8 & 7)) * 16;
#pragma unroll
      for (int s = 0; s < Shape::kColumns / kRows; ++s) {
        group_sync(kInt8GroupBarrier + group_, 128);  // what the slab held has been read
#pragma unroll
        for (int i = 0; i < kRows / 16; ++i) {
          const float* const d = sums + s * (kRows / 2) + i * 8;
          uint32_t packed[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) packed[j] = round_pair<T>(d[j * 2], d[j * 2 + 1]);
          const int m = (i * 2 + lane / 16) * 8 + lane % 8;
          const int chunk = warp * 2 + (lane / 8 & 1);
          store_matrices_transposed(slab + m * 128 + (chunk ^ (m & 7)) * 16, packed);
        }
        group_sync(kInt8GroupBarrier + group_, 128);
        writer.template write<kRows / 16>(slab + place, 16 * 128);
      }
    }
  }

  const Int8WgmmaArgs& args_;
  Int8Tile tile_{};
  Int8Slot<Shape> slot_;
  uint32_t window_;
  int group_;
  int thread_;
  int row_ = 0;          // of the weight: the first of the thread's two in a fragment
  float scale_[2] = {};  // of both, over 127
  float bias_[2] = {};
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
    barrier_init(window + Shape::kOutlierXFull, 1);
    barrier_init(window + Shape::kOutliersUsed, Shape::kComputeThreads / 32);
    barrier_init_fence();
    prefetch_map(&args.weight);
    prefetch_map(&args.x);
  }
  if constexpr (Shape::kOutlierTiles) clear_outliers<Shape>(window);
  __syncthreads();
  if (Shape::kOutlierTiles && args.splits > 1) cluster_sync();  // blocks write to the first one's memory
  if (threadIdx.x < 128) {
    leave_registers<Shape::kLoadRegisters>();
    if (threadIdx.x == 0) bring_stages<Shape>(args, window);
    if constexpr (Shape::kOutlierTiles) {
      if (threadIdx.x >= 32) pick_outliers<Shape>(args, window);
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
    group_sync(kInt8ComputeBarrier, Shape::kComputeThreads);  // the scales before have been read
    computer.stage_scales();
    int32_t dots[Shape::kSums];
    computer.multiply(dots);
    if (args.splits > 1) {
      const bool first = cluster_rank() == 0;
      if (!first) computer.leave(dots);
      cluster_sync();
      if (first) computer.gather(dots);
      cluster_sync();
      if (!first) return;
    }
    group_sync(kInt8ComputeBarrier, Shape::kComputeThreads);
    computer.finish(dots);
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
