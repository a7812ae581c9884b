#pragma once

#include <string>

#include "cuda/grouped_linear_4bit_pieces.cuh"
#include "cuda/launch.h"
#include "cuda/linear_4bit_wgmma.cuh"

// The wgmma kernel of linear_4bit: the roles of its warps, and how sums leave a block.

namespace qbits::cuda {

// Rows of x from m0 to m_end, weight rows (the gradient: columns) from n0 on, of the weight that begins at row `base`.
struct WgmmaTile {
  int64_t m0;
  int64_t m_end;
  int64_t n0;
  int64_t base;
};

// Two elements of out, from_float of each.
template <class T>
__device__ uint32_t round_pair(float first, float second) {
  uint32_t pair = pack<T>(first, second);
  if (isnan(first)) pair = (pair & 0xffff0000) | (kNanWord<T> & 0xffff);
  if (isnan(second)) pair = (pair & 0xffff) | (kNanWord<T> & 0xffff0000);
  return pair;
}

// Rounds and writes the sums of a warpgroup, 32 rows of x by 64 weight rows at a time: fragments are transposed
// through a slab of shared memory, so that 128 bytes of a row of out leave together.
template <class T, class Shape>
__device__ void write_sums(WgmmaComputer<T, Shape>& computer, const WgmmaArgs& args, const WgmmaTile& tile, int group,
                           int thread) {
  using Layout = WgmmaLayout<Shape>;
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int g = lane / 4;
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
    for (int s = 0; s < Shape::kColumns / 32; ++s) {
      const uint32_t slab = computer.window + Layout::kSlabs + (group * Shape::kSlabs + s % Shape::kSlabs) * 4096;
      if constexpr (Shape::kTransposed) {
        // The thread's two rows of a fragment are neighbours in out.
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float* const d = computer.sums + s * 16 + i / 2 * 4 + i % 2;
          const int m = i / 2 * 8 + lane % 4 * 2 + i % 2;
          const int chunk = warp * 2 + g / 4;
          store_shared(slab + m * 128 + (chunk ^ (m & 7)) * 16 + g % 4 * 4, round_pair<T>(d[0], d[2]));
        }
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float* const d = computer.sums + s * 16 + i * 8;
          uint32_t packed[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) packed[j] = round_pair<T>(d[j * 2] + add[j % 2], d[j * 2 + 1] + add[j % 2]);
          const int m = (i * 2 + lane / 16) * 8 + lane % 8;
          const int chunk = warp * 2 + (lane / 8 & 1);
          store_matrices_transposed(slab + m * 128 + (chunk ^ (m & 7)) * 16, packed);
        }
      }
      group_sync(kWgmmaGroupBarrier + group, 128);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int m = thread / 8 + i * 16;
        const int chunk = thread % 8;
        const uint4 v = load_shared<uint4>(slab + m * 128 + (chunk ^ (m & 7)) * 16);
        const int64_t row = tile.m0 + s * 32 + m;
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
      if constexpr (Shape::kSlabs == 1) group_sync(kWgmmaGroupBarrier + group, 128);
    }
  }
}

// The sums of the blocks that share an output tile, added in their order: each block writes its share of the rows.
template <class T, class Shape>
__device__ void add_splits(WgmmaComputer<T, Shape>& computer, const WgmmaArgs& args, int64_t m0, int64_t n0, int thread,
                           uint32_t rank_rows, uint32_t rank_split) {
  using Layout = WgmmaLayout<Shape>;
  constexpr int kPitch = Layout::kSumPitch;
  const int t = thread % 4;
  group_sync(kWgmmaAllBarrier, Shape::kComputeThreads);  // nobody reads the rings any more
#pragma unroll
  for (int i = 0; i < Shape::kColumns / 2; ++i) {
    const int m = i / 4 * 8 + 2 * t + i % 2;
    const int n = computer.decoder.output_row(i % 4 / 2);
    store_shared(computer.window + Layout::kX + (m * kPitch + n) * 4, computer.sums[i]);
  }
  cluster_sync();
  const int64_t rows = args.outputs;
  const T* const bias = static_cast<const T*>(args.bias);
  T* const out = static_cast<T*>(args.out);
  constexpr int kVectors = Layout::kRows / 4;
  const int share = Shape::kColumns / args.splits;
  for (int e = thread; e < share * kVectors; e += Shape::kComputeThreads) {
    const int m = static_cast<int>(rank_split) * share + e / kVectors;
    const int n = e % kVectors * 4;
    if (m0 + m >= args.m || n0 + n >= rows) continue;
    float4 sum{};
    for (int s = 0; s < args.splits; ++s) {
      const float4 v =
          load_cluster(computer.window + Layout::kX + (m * kPitch + n) * 4, s * args.multicast + rank_rows);
      sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
    }
    const float values[4] = {sum.x, sum.y, sum.z, sum.w};
    alignas(8) T rounded[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float add = bias != nullptr && n0 + n + i < rows ? to_float(bias[n0 + n + i]) : 0.0F;
      rounded[i] = from_float<T>(values[i] + add);
    }
    T* const to = out + (m0 + m) * rows + n0 + n;
    if (rows % 4 == 0) {
      *reinterpret_cast<uint2*>(to) = reinterpret_cast<const uint2&>(rounded);
    } else {
      for (int i = 0; i < 4 && n0 + n + i < rows; ++i) to[i] = rounded[i];
    }
  }
}

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1) linear_4bit_wgmma_kernel(const __grid_constant__ WgmmaArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Layout = WgmmaLayout<Shape>;
  const int tid = threadIdx.x;
  const int warpgroup = tid / 128;
  const int lane = tid % 32;
  const int warp = __shfl_sync(0xffffffff, tid / 32, 0) % 4;
  const uint32_t window = shared_address(dynamic_shared()) - Layout::kBase;
  if ((window & 0xffffff) != 0) __trap();

  const int cluster_blocks = args.multicast * args.splits;
  const uint32_t rank = cluster_blocks > 1 ? cluster_rank() : 0;
  const uint32_t rank_rows = rank % args.multicast;
  const uint32_t rank_split = rank / args.multicast;
  const int64_t clusters = gridDim.x / cluster_blocks;
  const int64_t m_tiles = (args.m + Shape::kColumns - 1) / Shape::kColumns;
  const int64_t row_tiles = (args.outputs + Layout::kRows - 1) / Layout::kRows;
  const int64_t row_supers = (row_tiles + args.multicast - 1) / args.multicast;
  const int64_t begin = rank_split * args.split_depth;
  const int64_t end = min(begin + args.split_depth, args.depth);
  const int stages = static_cast<int>((end - begin + kWgmmaStageDepth - 1) / kWgmmaStageDepth);

  if (tid == 0) {
    prefetch_map(&args.x);
    prefetch_map(&args.codes);
    for (int i = 0; i < Shape::kXStages; ++i) {
      barrier_init(window + Layout::kXFull + i * 8, 1);
      barrier_init(window + Layout::kXEmpty + i * 8, Shape::kGroups * 4 * args.multicast);
    }
    for (int i = 0; i < Shape::kCodeStages; ++i) {
      barrier_init(window + Layout::kCodesFull + i * 8, 1 + kWgmmaScaleThreads / 32);
      barrier_init(window + Layout::kCodesEmpty + i * 8, Shape::kGroups * 4);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (cluster_blocks > 1) cluster_sync();

  // Calls f(tile) for each tile of this block; whole warps call it.
  const auto for_tiles = [&](auto f) {
    if constexpr (Shape::kGrouped) {
      ExpertPieces<Shape::kColumns> pieces(args.offsets, args.experts, static_cast<int>(args.m));
      for (int64_t i = blockIdx.x;; i += gridDim.x) {
        const ExpertPiece piece = pieces.find(static_cast<uint32_t>(i / row_tiles));
        if (piece.expert < 0) break;
        const int64_t rows = Shape::kTransposed ? args.depth : args.outputs;
        f(WgmmaTile{piece.begin, piece.end, i % row_tiles * Layout::kRows, piece.expert * rows});
        __syncwarp();
      }
    } else {
      for (int64_t i = blockIdx.x / cluster_blocks; i < m_tiles * row_supers; i += clusters) {
        const MmaPosition at = mma_position(i, m_tiles, row_supers);
        f(WgmmaTile{at.m_tile * Shape::kColumns, args.m, (at.n_tile * args.multicast + rank_rows) * Layout::kRows, 0});
      }
    }
  };
  // Where a tile's part of the weight begins.
  const auto weight_row = [&](const WgmmaTile& tile) { return tile.base + (Shape::kTransposed ? begin : tile.n0); };
  const auto weight_column = [&](const WgmmaTile& tile) { return Shape::kTransposed ? tile.n0 : begin; };

  if (warpgroup == 0) {
    leave_registers<Shape::kLoadRegisters>();
    WgmmaLoader<Shape> loader{args, window, rank_rows, rank_split, static_cast<uint32_t>(args.weight.rows)};
    if (warp == 0) {
      RingSlot<Shape::kXStages> ring;
      for_tiles([&](const WgmmaTile& tile) {
        if (lane == 0) loader.load_x(ring, tile.m0, begin, stages);
      });
    } else if (warp == 1) {
      RingSlot<Shape::kCodeStages> ring;
      for_tiles([&](const WgmmaTile& tile) {
        if (lane == 0) loader.load_codes(ring, weight_row(tile), weight_column(tile), stages);
      });
    } else {
      const int thread = tid - 64;
      RingSlot<Shape::kCodeStages> ring;
      const auto load_all = [&](auto pair, float offset) {
        for_tiles([&](const WgmmaTile& tile) {
          constexpr bool kPair = decltype(pair)::value;
          if constexpr (Shape::kGrouped && Shape::kTransposed) loader.rows = tile.base + args.depth;
          const int64_t n = weight_row(tile);
          const int64_t k = weight_column(tile);
          if (args.scale_count > 0) {
            loader.template load_scale_vectors<kPair>(ring, n, k, stages, thread, offset);
          } else {
            loader.template load_scales<kPair>(ring, n, k, stages, thread, offset);
          }
        });
      };
      if constexpr (Shape::kAffine) {
        load_all(std::true_type{}, 0.0F);
      } else if (args.weight.nested_absmax != nullptr) {
        for (int i = thread; i < 256; i += kWgmmaScaleThreads) {
          store_shared(window + Layout::kNested + i * 4, args.weight.nested_code[i]);
        }
        group_sync(kWgmmaScaleBarrier, kWgmmaScaleThreads);
        load_all(std::true_type{}, *args.weight.offset);
      } else {
        load_all(std::false_type{}, 0.0F);
      }
    }
    __syncwarp();
    if (args.splits > 1) cluster_sync();
    if (cluster_blocks > 1) cluster_sync();
  } else {
    take_registers<Shape::kComputeRegisters>();
    const int thread = tid - 128;
    if (thread < 256) fill_table<Shape::kDecode>(window + Layout::kTable, args.values, thread);
    group_sync(kWgmmaAllBarrier, Shape::kComputeThreads);
    WgmmaComputer<T, Shape> computer(window, warpgroup - 1, warp, lane, args.wide_groups);
    RingSlot<Shape::kXStages> x;
    RingSlot<Shape::kCodeStages> codes;
    for_tiles([&](const WgmmaTile& tile) {
      computer.run(x, codes, stages, args.multicast, rank_split * args.multicast);
      if (args.splits > 1) {
        add_splits(computer, args, tile.m0, tile.n0, thread, rank_rows, rank_split);
      } else {
        write_sums(computer, args, tile, warpgroup - 1, thread % 128);
      }
    });
    computer.finish();
    // Others in the cluster read this block's sums and arrive on its barriers until here.
    if (cluster_blocks > 1) cluster_sync();
  }
#endif
}

template <class T, class Shape>
void launch_wgmma_shape(const WgmmaArgs& args, const WgmmaPlan& plan, Stream stream) {
  constexpr std::string_view kOp = "linear_4bit";
  constexpr int kBytes = WgmmaLayout<Shape>::kBytes;
  const auto kernel = linear_4bit_wgmma_kernel<T, Shape>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), kOp);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(plan.multicast * plan.splits), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(plan.blocks));
  config.blockDim = dim3(Shape::kThreads);
  config.dynamicSmemBytes = kBytes;
  config.stream = native(stream);
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, args), kOp);
}

}  // namespace qbits::cuda
