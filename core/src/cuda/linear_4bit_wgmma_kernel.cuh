#pragma once

#include <algorithm>
#include <string>

#include "cuda/device.h"
#include "cuda/grouped_linear_4bit_pieces.cuh"
#include "cuda/launch.h"
#include "cuda/linear_4bit_wgmma_share.cuh"

// The wgmma kernel of linear_4bit: the roles of its warps.

namespace qbits::cuda {

// One thread initializes them: lanes that differ in the address would take a loop over it.
template <class Shape>
__device__ void init_barriers(uint32_t window, int sharers) {
  using Layout = WgmmaLayout<Shape>;
  constexpr int kReaders = Shape::kRowGroups * 4;
  const int x_readers = kReaders * sharers;
#pragma unroll
  for (int i = 0; i < Shape::kCodeStages; ++i) {
    barrier_init(window + Layout::kFull + i * 8, 1 + kWgmmaScaleThreads / 32);
    barrier_init(window + Layout::kEmpty + i * 8, Shape::kCodesApart ? kReaders : x_readers);
  }
#pragma unroll
  for (int i = 0; Shape::kCodesApart && i < Shape::kStages; ++i) {
    barrier_init(window + Layout::kXFull + i * 8, 1);
    barrier_init(window + Layout::kXEmpty + i * 8, x_readers);
  }
  barrier_init(window + Layout::kShareLeft, Shape::kGroups * 4);
  barrier_init_fence();
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1) linear_4bit_wgmma_kernel(const __grid_constant__ WgmmaArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Layout = WgmmaLayout<Shape>;
  const int tid = threadIdx.x;
  const int lane = tid % 32;
  const int block_warp = __shfl_sync(0xffffffff, tid / 32, 0);  // which makes it uniform
  const int warpgroup = block_warp / 4;
  const int warp = block_warp % 4;
  const uint32_t window = shared_address(dynamic_shared()) - Layout::kBase;
  if ((window & 0xffffff) != 0) __trap();
  const bool elected = elect_one();

  constexpr bool kShares = !Shape::kGrouped && Shape::kDepthGroups == 1;  // tiles may be shared
  const bool shares_x = Shape::kMayShareX && args.sharers > 1;
  const bool at_once = Shape::kGrouped || shares_x;  // offsets are read; the other block's barriers are arrived at
  // From the start to the first product 4000 clocks pass, half of them before memory is asked for anything. So warps
  // begin with what each can do, and wait for no more than they need.
  if (block_warp == 4) {
    if (elected) init_barriers<Shape>(window, args.sharers);
    __syncwarp();
    if (!at_once) {
      group_arrive(kWgmmaFirstBarrier, kWgmmaPairThreads);
      group_arrive(kWgmmaScaleBarrier, kWgmmaLoadThreads);
      if constexpr (kShares) group_arrive(kWgmmaTellBarrier, kWgmmaPairThreads);
    }
  }
  if (warpgroup > 0) {
    if (Shape::kLookedUp) fill_table(args.values, tid - 128, Shape::kComputeThreads);
  } else if (warp == 1) {
    if (elected) {
      prefetch_map(&args.codes);
      prefetch_map(&args.x.whole);
    }
    __syncwarp();
    if (args.early) drop_l1();
    if (!at_once) group_arrive(kWgmmaScaleBarrier, kWgmmaLoadThreads);
  }
  if (shares_x) {
    cluster_sync();
  } else if (Shape::kGrouped) {
    __syncthreads();
  } else if (warpgroup > 0) {
    group_sync(kWgmmaAllBarrier, Shape::kComputeThreads);
  }

  // Calls f(segment, tile, begin) for each part of a tile that this block computes, from `begin` of the depth. Of
  // experts, whole warps call it, and tiles are whole.
  const auto for_segments = [&](auto f) {
    if constexpr (Shape::kGrouped) {
      const int weight_rows = static_cast<int>(Shape::kTransposed ? args.depth : args.outputs);
      const uint32_t row_tiles = args.schedule.row_tiles;
      ExpertPieces<Shape::kColumns> pieces(args.offsets, args.experts, static_cast<int>(args.m));
      for (uint32_t i = blockIdx.x;; i += gridDim.x) {
        const ExpertPiece piece = pieces.find(i / row_tiles);
        if (piece.expert < 0) break;
        const WgmmaTile tile{piece.begin, piece.end, static_cast<int>(i % row_tiles) * Layout::kRows,
                             piece.expert * weight_rows};
        f(WgmmaSegment{0, 0, args.schedule.units}, tile, 0);
        __syncwarp();
      }
    } else {
      const int rank = shares_x ? static_cast<int>(cluster_rank()) : 0;
      for_each_segment(args.schedule, static_cast<int>(blockIdx.x) >> (args.sharers - 1), [&](const WgmmaSegment& s) {
        const WgmmaSchedule::Position at = args.schedule.position(s.tile);
        const WgmmaTile tile{at.m_tile * Shape::kColumns, static_cast<int>(args.m),
                             args.first_row + (at.row_tile * args.sharers + rank) * Layout::kRows, 0};
        f(s, tile, s.first * kWgmmaUnitDepth);
      });
    }
  };
  const auto stages = [](const WgmmaSegment& s) { return (s.last - s.first) * Shape::kUnitStages; };
  // Where a segment's part of the weight begins.
  const auto weight_row = [](const WgmmaTile& tile, int begin) {
    return tile.base + (Shape::kTransposed ? begin : tile.n0);
  };
  const auto weight_column = [](const WgmmaTile& tile, int begin) { return Shape::kTransposed ? tile.n0 : begin; };

  const WgmmaShares<T, Shape> shares{args, window};
  const auto leaves = [&](const WgmmaSegment& s) { return args.schedule.is_shared(s) && args.schedule.is_left(s); };
  const auto takes = [&](const WgmmaSegment& s) { return args.schedule.is_shared(s) && !args.schedule.is_left(s); };
  if (warpgroup == 0) {
    leave_registers<Shape::kLoadRegisters>();
    // What comes first is found out before the wait, and where it lies asked for: the L2, and the tables of the
    // memory's pages, know it then.
    bool waits = true;
    const auto wait = [&](auto prefetch) {
      if (!waits) return;
      waits = false;
      if constexpr (Shape::kColumns <= 64) prefetch();  // others took longer by it
      wait_for_kernels_before();
      let_next_kernel_start();
    };
    const auto wait_to_read = [&](auto prefetch) {
      if (!args.early) wait(prefetch);
    };
    if constexpr (Shape::kGrouped) wait_to_read([] {});
    if (warp == 0) {
      const WgmmaLoader<T, Shape> loader{args, window, elected};
      typename WgmmaLoader<T, Shape>::Ring ring;
      bool first = !Shape::kGrouped;  // experts' copies do not come all at once
      for_segments([&](const WgmmaSegment& s, const WgmmaTile& tile, int begin) {
        wait_to_read([&] {
          if (loader.elected) loader.prefetch_codes(weight_row(tile, begin), weight_column(tile, begin));
        });
        loader.load_stages(ring, tile.m0, begin, weight_row(tile, begin), weight_column(tile, begin), stages(s), first,
                           first && !at_once);
        if constexpr (kShares) {
          if (takes(s) && loader.elected) shares.bring(ring, s.tile);
        }
        first = false;
      });
    } else if (warp == 1) {
      if (kShares && !at_once) group_sync(kWgmmaTellBarrier, kWgmmaPairThreads);
      if (kShares && lane == 0) {
        for_segments([&](const WgmmaSegment& s, const WgmmaTile&, int) {
          if (!leaves(s)) return;
          wait([] {});
          shares.tell();
        });
      }
    } else {
      const int thread = tid - 64;
      WgmmaScaleLoader<T, Shape> loader{args, window, static_cast<uint32_t>(args.weight.rows)};
      loader.may_load = at_once;
      RingSlot<Shape::kCodeStages> ring;
      loader.for_scale_kind([&](auto kind) {
        using Kind = decltype(kind);
        constexpr bool kNested = Kind::kPair && !Shape::kAffine;
        float offset = 0;
        if constexpr (kNested) {
          loader.wait_to_load();
          wait_to_read([] {});
          loader.load_nested(thread);
          offset = *args.weight.offset;
        }
        for_segments([&](const WgmmaSegment& s, const WgmmaTile& tile, int begin) {
          if constexpr (Shape::kGrouped && Shape::kTransposed) {
            loader.rows = tile.base + static_cast<uint32_t>(args.depth);
          }
          const int n = weight_row(tile, begin);
          const int k = weight_column(tile, begin);
          wait_to_read([&] { loader.template prefetch_scales<Kind>(n, k, thread); });
          if constexpr (Kind::kCount > 0) {
            loader.template load_scale_vectors<Kind>(ring, n, k, stages(s), thread, offset);
          } else {
            loader.template load_scales<Kind>(ring, n, k, stages(s), thread, offset);
          }
        });
        loader.wait_to_load();
      });
    }
    wait([] {});
    __syncwarp();
    if (args.schedule.splits > 1) {
      cluster_sync();
      cluster_sync();
    }
  } else {
    take_registers<Shape::kComputeRegisters>();
    const int thread = tid - 128;
    if (!args.early) wait_for_kernels_before();
    WgmmaComputer<T, Shape> computer(window, warpgroup - 1, warp, lane, args);
    typename WgmmaComputer<T, Shape>::Ring ring;
    for_segments([&](const WgmmaSegment& s, const WgmmaTile& tile, int) {
      constexpr bool kSplitZeros = Shape::kComputed && !Shape::kPacked;
      if (kSplitZeros && args.zeros_whole) {
        computer.template run<false>(ring, s.last - s.first);
      } else {
        computer.template run<kSplitZeros>(ring, s.last - s.first);
      }
      if (args.early) wait_for_kernels_before();  // what has read early now writes
      if constexpr (!Shape::kGrouped) {
        if (args.schedule.splits == 2) return add_splits<2>(computer, args, s.tile, tile, thread % 128);
        if (args.schedule.splits == 4) return add_splits<4>(computer, args, s.tile, tile, thread % 128);
        if constexpr (Shape::kDepthGroups > 1) __trap();  // no such plan
      }
      if constexpr (kShares) {
        if (leaves(s)) return shares.leave(computer, thread);
        if (takes(s)) shares.take(computer, ring, s.tile, thread);
      }
      write_sums(computer, args, tile, thread % 128, computer.sums);
    });
    computer.finish();
    // Others in the cluster have read this block's sums.
    if (args.schedule.splits > 1) cluster_wait();
  }
  if (shares_x) {
    __syncwarp();
    cluster_sync();  // the other block arrives at this one's barriers until here
  }
#endif
}

template <class T, class Shape>
void launch_wgmma_shape(const WgmmaArgs& args, const WgmmaPlan& plan, Stream stream) {
  constexpr std::string_view kOp = "linear_4bit";
  constexpr int kBytes = WgmmaLayout<Shape>::kBytes;
  const auto kernel = linear_4bit_wgmma_kernel<T, Shape>;
  allow_shared_memory(reinterpret_cast<const void*>(kernel), kOp);
  const LaunchShape shape{.blocks = plan.blocks,
                          .threads = Shape::kThreads,
                          .shared_bytes = size_t{kBytes},
                          .cluster = std::max(plan.sharers, plan.splits),
                          .overlaps = true};
  launch(kOp, kernel, shape, stream, args);
}

}  // namespace qbits::cuda
