#pragma once

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/linear_int8_fused_quantize.cuh"

// linear_int8 on Hopper for few rows of x, in one launch: the blocks of a cluster share the depth of a tile of 128
// weight rows, each quantizes its share of x while the first of its weight is on the way, and keeps it. Blocks with the
// same share do the same work, which is less than the launch of a quantizer. Sums of integers are exact whatever their
// order; those of outliers are added in the order of blocks.

namespace qbits::cuda {

// The barrier of all threads after which what blocks of the cluster wrote to shared memory can be read.
__device__ inline void meet(int splits) {
  if (splits > 1) {
    cluster_sync();
  } else {
    __syncthreads();
  }
}

template <class Shape>
__device__ void bring_weight(const Int8FusedArgs<typename Shape::T>& args, Int8Share share, uint32_t window, int from,
                             int to) {
  for (int i = from; i < to; ++i) {
    const int slot = i % Shape::kStages;
    if (i >= Shape::kStages) barrier_wait(window + Shape::kEmpty + slot * 8, (i / Shape::kStages - 1) & 1);
    const uint32_t full = window + Shape::kFull + slot * 8;
    barrier_arrive_expecting(full, Shape::kStageBytes);
    copy_box(window + Shape::kRing + slot * Shape::kStageBytes, &args.weight, (share.begin + i) * Shape::kDepth,
             static_cast<int>(blockIdx.x) / args.splits * Shape::kRows, full);
  }
}

// The weight's codes in the first outlier columns, picked by three warps from the ring as it goes by.
template <class Shape>
__device__ void pick_fused_outliers(Int8Share share, uint32_t window) {
  using T = typename Shape::T;
  const int thread = static_cast<int>(threadIdx.x) - 32;
  int at = 0;
  for (int i = 0; i < share.count; ++i) {
    const int slot = i % Shape::kStages;
    const uint32_t codes = window + Shape::kRing + slot * Shape::kStageBytes;
    const uint4 marks = stage_marks(window + Shape::kMarks, i);
    barrier_wait(window + Shape::kFull + slot * 8, i / Shape::kStages & 1);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      for (uint32_t bits = word_of(marks, w); bits != 0 && at < kOutlierValues; bits &= bits - 1, ++at) {
        const int k = w * 32 + __ffs(static_cast<int>(bits)) - 1;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int n = thread + half * Shape::kOutlierThreads;
          if (n >= Shape::kRows) continue;
          const auto code = load_shared<int8_t>(codes + n * 128 + (k / 16 ^ (n & 7)) * 16 + k % 16);
          store_shared(window + Shape::kOutlierWeight + outlier_place(n, at),
                       static_cast<uint16_t>(pack<T>(static_cast<float>(code), 0.0F)));
        }
      }
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(window + Shape::kEmpty + slot * 8);
  }
  barrier_arrive(window + Shape::kPicked);
}

template <class Shape>
class Int8FusedComputer {
 public:
  using T = typename Shape::T;
  static constexpr int kSums = Shape::kSums;

  __device__ Int8FusedComputer(const Int8FusedArgs<T>& args, Int8Share share, uint32_t window)
      : args_(args),
        share_(share),
        window_(window),
        thread_(static_cast<int>(threadIdx.x) - 128),
        n0_(static_cast<int>(blockIdx.x) / args.splits * Shape::kRows),
        row_(thread_ / 32 * 16 + thread_ % 32 / 4) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int n = n0_ + row_ + r * 8;
      scale_[r] = n < args.n ? __fdiv_rn(args.scales[n], kInt8Max) : 0.0F;
      bias_[r] = args.bias != nullptr && n < args.n ? to_float(args.bias[n]) : 0.0F;
    }
  }

  // The integer sums of the block's share.
  __device__ void multiply(int32_t (&dots)[kSums]) const {
    pin_int8(dots);
    for (int i = 0; i < share_.count; ++i) {
      const int slot = i % Shape::kStages;
      barrier_wait(window_ + Shape::kFull + slot * 8, i / Shape::kStages & 1);
      const uint64_t weight =
          tile_descriptor(window_ + Shape::kRing + slot * Shape::kStageBytes + thread_ / 128 * (64 * Shape::kDepth));
      const uint64_t x = tile_descriptor(window_ + i * (Shape::kColumns * 128));
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < Shape::kDepth / 32; ++j) wgmma_int8(dots, weight + j * 2, x + j * 2, i > 0 || j > 0);
      wgmma_commit();
      wgmma_wait<1>();
      if (i > 0 && thread_ % 32 == 0) barrier_arrive(window_ + Shape::kEmpty + (i - 1) % Shape::kStages * 8);
    }
    wgmma_wait<0>();
    pin_int8(dots);
  }

  // The sums of outliers of the block's share.
  __device__ void add_outliers(const Int8OutlierOrder& order, float (&sums)[kSums]) const {
    const uint32_t weight = window_ + Shape::kOutlierWeight;
    const uint32_t x = window_ + Shape::kOutlierX;
    barrier_wait(window_ + Shape::kPicked, 0);
    multiply_outliers<T>(sums, weight, row_, x, min(order.count(), kOutlierValues));
    if (order.count() <= kOutlierValues) return;
    // The others by a list, where the ring was.
    const uint32_t list = window_ + Shape::kRing;
    group_sync(kInt8ComputeBarrier, Shape::kComputeThreads);
    for (int i = thread_; i < Shape::kMaxStages * Shape::kDepth; i += Shape::kComputeThreads) {
      const int stage = i / Shape::kDepth;
      const int column = i % Shape::kDepth;
      const int before = order.before(stage);
      if (stage >= share_.count ||
          (word_of(stage_marks(window_ + Shape::kMarks, stage), column / 32) >> column % 32 & 1) == 0)
        continue;
      store_shared(list + (before + order.within(stage, column)) * 4, (share_.begin + stage) * Shape::kDepth + column);
    }
    const auto at = [&](int j) { return load_shared<int>(list + j * 4); };
    for (int first = kOutlierValues; first < order.count(); first += kOutlierValues) {
      group_sync(kInt8ComputeBarrier, Shape::kComputeThreads);
      gather_outliers<T>(args_.codes, n0_, args_.n, Shape::kRows, weight, args_.k, at, first, order.count(), thread_,
                         Shape::kComputeThreads);
      gather_outliers<T>(reinterpret_cast<const uint16_t*>(args_.x), 0, args_.m, Shape::kColumns, x, args_.k, at, first,
                         order.count(), thread_, Shape::kComputeThreads);
      fence_shared();
      group_sync(kInt8ComputeBarrier, Shape::kComputeThreads);
      multiply_outliers<T>(sums, weight, row_, x, min(order.count() - first, kOutlierValues));
    }
  }

  // Whether this block of the cluster finishes eight rows of x.
  __device__ bool finishes(int eight) const { return eight % args_.splits == static_cast<int>(cluster_rank()); }

  // Leaves sums for the blocks that finish them, and, in these, adds what the others left.
  __device__ void leave(const int32_t (&dots)[kSums], const float (&sums)[kSums]) const {
    group_sync(kInt8ComputeBarrier, Shape::kComputeThreads);  // all have read the ring
#pragma unroll
    for (int i = 0; i < kSums; i += 4) {
      if (finishes(i / 4)) continue;
      store_shared(place(i), make_int4(dots[i], dots[i + 1], dots[i + 2], dots[i + 3]));
      if constexpr (Shape::kOutliers) {
        store_shared(place(i) + Shape::kSumBytes, make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]));
      }
    }
  }
  __device__ void gather(int32_t (&dots)[kSums], float (&sums)[kSums]) const {
    for (uint32_t rank = 0; rank < static_cast<uint32_t>(args_.splits); ++rank) {
      if (rank == cluster_rank()) continue;
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        if (!finishes(i / 4)) continue;
        const float4 d = load_cluster(place(i), rank);
        const float other[4] = {d.x, d.y, d.z, d.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) dots[i + j] += __float_as_int(other[j]);
        if constexpr (Shape::kOutliers) {
          const float4 s = load_cluster(place(i) + Shape::kSumBytes, rank);
          sums[i] += s.x, sums[i + 1] += s.y, sums[i + 2] += s.z, sums[i + 3] += s.w;
        }
      }
    }
  }

  // out of the rows of x that this block finishes.
  __device__ void finish(const int32_t (&dots)[kSums], const float (&sums)[kSums]) const {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      if (!finishes(i / 4)) continue;
      const int m = i / 4 * 8 + thread_ % 4 * 2 + i % 2;
      const int n = n0_ + row_ + i / 2 % 2 * 8;
      if (m >= args_.m || n >= args_.n) continue;
      const float a = __fdiv_rn(load_shared<float>(window_ + Shape::kScales + m * 4), kInt8Max);
      const float value = __fmaf_rn(a, __int2float_rn(dots[i]), sums[i]);
      args_.out[int64_t{m} * args_.n + n] = from_float<T>(__fmaf_rn(scale_[i / 2 % 2], value, bias_[i / 2 % 2]));
    }
  }

 private:
  __device__ uint32_t place(int i) const {
    return window_ + Shape::kRing + (i / 4 * Shape::kComputeThreads + thread_) * 16;
  }

  const Int8FusedArgs<T>& args_;
  Int8Share share_;
  uint32_t window_;
  int thread_;
  int n0_;               // of the weight: the tile's first row
  int row_;              // in the tile: the first of the thread's two in a fragment
  float scale_[2] = {};  // of both, over 127
  float bias_[2] = {};
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    linear_int8_fused_kernel(const __grid_constant__ Int8FusedArgs<typename Shape::T> args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const uint32_t window = (shared_address(dynamic_shared()) + 1023) / 1024 * 1024;
  const Int8Share share(args);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kStages; ++i) {
      barrier_init(window + Shape::kFull + i * 8, 1);
      barrier_init(window + Shape::kEmpty + i * 8, Shape::kReaders);
    }
    barrier_init(window + Shape::kPicked, Shape::kOutlierThreads);
    barrier_init_fence();
    prefetch_map(&args.weight);
  }
  if (threadIdx.x < Shape::kColumns) store_shared(window + Shape::kMagnitudes + threadIdx.x * 4, 0U);
  if (threadIdx.x < Shape::kMaxStages) store_shared(window + Shape::kMarks + threadIdx.x * 16, make_uint4(0, 0, 0, 0));
  if constexpr (Shape::kOutliers) {
    // Columns that no outlier has stay 0.
    for (int i = static_cast<int>(threadIdx.x) * 16; i < Shape::kOutlierBytes; i += Shape::kThreads * 16) {
      store_shared(window + Shape::kOutlierWeight + i, make_uint4(0, 0, 0, 0));
    }
    fence_shared();
  }
  __syncthreads();
  let_next_kernel_start();
  wait_for_kernels_before();
  if (threadIdx.x < 128) {
    leave_registers<40>();
    const int first = min(share.count, Shape::kStages);
    if (threadIdx.x == 0) bring_weight<Shape>(args, share, window, 0, first);
    __syncwarp();
    meet(args.splits);
    if (threadIdx.x == 0) bring_weight<Shape>(args, share, window, first, share.count);
    if constexpr (Shape::kOutliers) {
      if (threadIdx.x >= 32) pick_fused_outliers<Shape>(share, window);
    }
    if (args.splits > 1) {
      __syncwarp();
      cluster_sync();
      cluster_sync();
    }
    return;
  }
  take_registers<232>();
  {
    const Int8FusedQuantizer<Shape> quantizer(args, share, window);
    quantizer.look();
    meet(args.splits);
    quantizer.find_scales();
    group_sync(kInt8ComputeBarrier, Shape::kComputeThreads);
    quantizer.encode(Int8OutlierOrder(window + Shape::kMarks, share.count));
  }
  fence_shared();
  group_sync(kInt8ComputeBarrier, Shape::kComputeThreads);
  const Int8FusedComputer<Shape> computer(args, share, window);
  int32_t dots[Shape::kSums];
  float sums[Shape::kSums] = {};
  computer.multiply(dots);
  if constexpr (Shape::kOutliers) {
    computer.add_outliers(Int8OutlierOrder(window + Shape::kMarks, share.count), sums);
  }
  if (args.splits > 1) {
    computer.leave(dots, sums);
    cluster_sync();
    computer.gather(dots, sums);
    cluster_sync();
  }
  computer.finish(dots, sums);
#endif
}

// Runs the instantiation of a plan; each T has a file of its own.
template <class T>
void launch_linear_int8_fused(const Int8FusedArgs<T>& args, bool outliers, const LinearInt8Plan& plan, Stream stream);
extern template void launch_linear_int8_fused<__nv_bfloat16>(const Int8FusedArgs<__nv_bfloat16>&, bool,
                                                             const LinearInt8Plan&, Stream);
extern template void launch_linear_int8_fused<__half>(const Int8FusedArgs<__half>&, bool, const LinearInt8Plan&,
                                                      Stream);

}  // namespace qbits::cuda
