#pragma once

#include <string>

#include "cuda/device.h"
#include "cuda/grouped_linear_4bit_pieces.cuh"
#include "cuda/launch.h"
#include "cuda/linear_4bit_wgmma.cuh"
#include "cuda/linear_4bit_wgmma_share.cuh"

// The wgmma kernel of linear_4bit: the roles of its warps, and how sums leave a block.

namespace qbits::cuda {

// Rows of x from m0 to m_end, weight rows (the gradient: columns) from n0 on, of the weight that begins at row `base`.
struct WgmmaTile {
  int m0;
  int m_end;
  int n0;
  int base;
};

// Rounds and writes the sums of a warpgroup, 32 (or 16) rows of x by 64 weight rows at a time: fragments are transposed
// through a slab of shared memory, so that 128 bytes of a row of out leave together.
template <class T, class Shape>
__device__ void write_sums(WgmmaComputer<T, Shape>& computer, const WgmmaArgs& args, const WgmmaTile& tile, int group,
                           int thread) {
  using Layout = WgmmaLayout<Shape>;
  constexpr int kSlabs = Layout::kGroupSlabs < 2 || Shape::kColumns == 256 ? 1 : 2;  // wide ones lack registers
  constexpr int kRows = Shape::kColumns < 32 ? Shape::kColumns : 32;                 // of x, in a slab
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int64_t rows = args.outputs;
  const T* const bias = static_cast<const T*>(args.bias);
  T* const out = static_cast<T*>(args.out);
  const bool whole = rows % 8 == 0;
  {
    const int64_t n = tile.n0 + group * 64;
    float add[2] = {};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t row = tile.n0 + computer.decoder.output_row(h);
      if (bias != nullptr && row < rows) add[h] = to_float(bias[tile.base + row]);
    }
#pragma unroll
    for (int s = 0; s < Shape::kColumns / kRows; ++s) {
      const uint32_t slab = computer.window + Layout::kSlabs + (group * kSlabs + s % kSlabs) * Layout::kSlabBytes;
      if constexpr (Shape::kTransposed) {
        // The thread's two rows of a fragment are neighbours in out.
        const int column = computer.decoder.output_row(0) % 64;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float* const d = computer.sums + s * 16 + i / 2 * 4 + i % 2;
          const int m = i / 2 * 8 + lane % 4 * 2 + i % 2;
          store_shared(slab + m * Layout::kSlabPitch + (column / 8 ^ (m & 7)) * 16 + column % 8 * 2,
                       round_pair<T>(d[0], d[2]));
        }
      } else {
#pragma unroll
        for (int i = 0; i < kRows / 16; ++i) {
          const float* const d = computer.sums + s * 16 + i * 8;
          uint32_t packed[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) packed[j] = round_pair<T>(d[j * 2] + add[j % 2], d[j * 2 + 1] + add[j % 2]);
          const int m = (i * 2 + lane / 16) * 8 + lane % 8;
          const int chunk = warp * 2 + (lane / 8 & 1);
          store_matrices_transposed(slab + m * Layout::kSlabPitch + (chunk ^ (m & 7)) * 16, packed);
        }
      }
      group_sync(kWgmmaGroupBarrier + group, 128);
#pragma unroll
      for (int i = 0; i < kRows / 16; ++i) {
        const int m = thread / 8 + i * 16;
        const int chunk = thread % 8;
        const uint4 v = load_shared<uint4>(slab + m * Layout::kSlabPitch + (chunk ^ (m & 7)) * 16);
        const int64_t row = tile.m0 + s * kRows + m;
        const int64_t column = n + chunk * 8;
        if (row >= tile.m_end || column >= rows) continue;
        T* const to = out + row * rows + column;
        if (whole) {
          *reinterpret_cast<uint4*>(to) = v;
        } else {
          const T* const values = reinterpret_cast<const T*>(&v);
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            if (column + e < rows) to[e] = values[e];
          }
        }
      }
      if constexpr (kSlabs == 1) group_sync(kWgmmaGroupBarrier + group, 128);
    }
  }
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

  if (tid == 0) {
    prefetch_map(&args.x);
    prefetch_map(&args.codes);
    for (int i = 0; i < Shape::kCodeStages; ++i) {
      barrier_init(window + Layout::kFull + i * 8, 1 + kWgmmaScaleThreads / 32);
      barrier_init(window + Layout::kEmpty + i * 8, Shape::kRowGroups * 4);
    }
    for (int i = 0; Shape::kCodesApart && i < Shape::kStages; ++i) {
      barrier_init(window + Layout::kXFull + i * 8, 1);
      barrier_init(window + Layout::kXEmpty + i * 8, Shape::kRowGroups * 4);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(window + Layout::kShareLeft + i * 8, Shape::kGroups * 4);
      barrier_init(window + Layout::kShareCounted + i * 8, 1);
    }
    barrier_init_fence();
  }
  __syncthreads();

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
      for_each_segment(args.schedule, static_cast<int>(blockIdx.x), [&](const WgmmaSegment& s) {
        const WgmmaSchedule::Position at = args.schedule.position(s.tile);
        const WgmmaTile tile{at.m_tile * Shape::kColumns, static_cast<int>(args.m),
                             args.first_row + at.row_tile * Layout::kRows, 0};
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

  const WgmmaShares<WgmmaComputer<T, Shape>> all{args};
  if (warpgroup == 0) {
    leave_registers<Shape::kLoadRegisters>();
    WgmmaLoader<T, Shape> loader{args, window, static_cast<uint32_t>(args.weight.rows)};
    wait_for_kernels_before();
    let_next_kernel_start();
    if (warp == 0) {
      if (Shape::kGrouped || lane == 0) {
        typename WgmmaLoader<T, Shape>::Ring ring;
        for_segments([&](const WgmmaSegment& s, const WgmmaTile& tile, int begin) {
          if (lane != 0) return;
          loader.load_stages(ring, tile.m0, begin, weight_row(tile, begin), weight_column(tile, begin), stages(s));
        });
      }
    } else if (warp == 1) {
      if (!Shape::kGrouped && lane == 0) {
        int i = 0;
        for_segments([&](const WgmmaSegment& s, const WgmmaTile&, int) {
          if (!args.schedule.is_shared(s)) return;
          barrier_wait(window + Layout::kShareLeft + i * 8, 0);
          const int shares = args.schedule.last_block(s.tile) - args.schedule.first_block(s.tile) + 1;
          store_shared(window + Layout::kShareLast + i * 4,
                       uint32_t{count_share(all.count(s.tile), shares, args.nonce)});
          barrier_arrive(window + Layout::kShareCounted + i * 8);
          ++i;
        });
      }
    } else {
      const int thread = tid - 64;
      RingSlot<Shape::kCodeStages> ring;
      loader.for_scale_kind([&](auto kind) {
        using Kind = decltype(kind);
        constexpr bool kNested = Kind::kPair && !Shape::kAffine;
        if constexpr (kNested) loader.load_nested(thread);
        const float offset = kNested ? *args.weight.offset : 0.0F;
        for_segments([&](const WgmmaSegment& s, const WgmmaTile& tile, int begin) {
          if constexpr (Shape::kGrouped && Shape::kTransposed) {
            loader.rows = tile.base + static_cast<uint32_t>(args.depth);
          }
          const int n = weight_row(tile, begin);
          const int k = weight_column(tile, begin);
          if constexpr (Kind::kCount > 0) {
            loader.template load_scale_vectors<Kind>(ring, n, k, stages(s), thread, offset);
          } else {
            loader.template load_scales<Kind>(ring, n, k, stages(s), thread, offset);
          }
        });
      });
    }
    __syncwarp();
    if (args.schedule.splits > 1) {
      cluster_sync();
      cluster_sync();
    }
  } else {
    take_registers<Shape::kComputeRegisters>();
    const int thread = tid - 128;
    if (!Shape::kComputed && thread < 256) fill_table(window + Layout::kTable, args.values, thread);
    wait_for_kernels_before();
    group_sync(kWgmmaAllBarrier, Shape::kComputeThreads);
    WgmmaComputer<T, Shape> computer(window, warpgroup - 1, warp, lane, args.wide_groups);
    typename WgmmaComputer<T, Shape>::Ring ring;
    int i = 0;
    for_segments([&](const WgmmaSegment& s, const WgmmaTile& tile, int) {
      if (Shape::kComputed && args.zeros_whole) {
        computer.template run<false>(ring, s.last - s.first);
      } else {
        computer.template run<Shape::kComputed>(ring, s.last - s.first);
      }
      if constexpr (Shape::kGrouped) return write_sums(computer, args, tile, warpgroup - 1, thread % 128);
      if (args.schedule.splits == 2) return add_splits<2>(computer, args, s.tile, tile.m0, tile.n0, thread);
      if (args.schedule.splits == 4) return add_splits<4>(computer, args, s.tile, tile.m0, tile.n0, thread);
      if constexpr (Shape::kDepthGroups > 1) __trap();  // no such plan
      if (!args.schedule.is_shared(s)) return write_sums(computer, args, tile, warpgroup - 1, thread % 128);
      all.leave(computer, s.tile, thread);
      __syncwarp();
      if (lane == 0) barrier_arrive(window + Layout::kShareLeft + i * 8);
      ++i;
    });
    i = 0;
    if constexpr (!Shape::kGrouped) {
      for_segments([&](const WgmmaSegment& s, const WgmmaTile& tile, int) {
        if (!args.schedule.is_shared(s)) return;
        barrier_wait(window + Layout::kShareCounted + i * 8, 0);
        if (load_shared<uint32_t>(window + Layout::kShareLast + i++ * 4) == 0) return;
        all.gather(computer, s.tile, thread);
        write_sums(computer, args, tile, warpgroup - 1, thread % 128);
      });
    }
    computer.finish();
    // Others in the cluster read this block's sums until here.
    if (args.schedule.splits > 1) cluster_sync();
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
                          .cluster = plan.splits,
                          .overlaps = true};
  launch(kOp, kernel, shape, stream, args);
}

}  // namespace qbits::cuda
