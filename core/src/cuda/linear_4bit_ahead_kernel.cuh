#pragma once

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/linear_4bit_ahead_decode.cuh"
#include "cuda/linear_4bit_slab_writer.cuh"

// linear_4bit on Hopper for many rows of x, as out^T = W x^T: each weight is dequantized once, by warps of all blocks,
// into a ring of units in global memory that stays in the L2, ahead of a product of two operands in shared memory.
// The gradient for x is the same with W^T and rows of grad. Clusters stay and take tile after tile; a block's warps:
// one brings operands, three dequantize, two warpgroups multiply.

namespace qbits::cuda {

// The tiles of a cluster: f(wave, tile).
template <class F>
__device__ void for_tiles(const AheadSchedule& schedule, int cluster, F f) {
  for (AheadSchedule::Wave wave = schedule.first_wave();; wave = schedule.next_wave(wave)) {
    if (wave.first_tile + cluster < schedule.tiles) f(wave, schedule.tile(wave.first_tile + cluster));
    if (schedule.is_last(wave)) return;
  }
}

// The thread that brings operands.
template <class Shape>
struct AheadLoader {
  using Layout = AheadLayout<Shape>;

  const AheadArgs& args;
  uint32_t window;
  uint32_t rank;
  int stages;  // of a tile
  RingSlot<Shape::kStages> ring = {};
  int published = 0;

  // `ready` is what its counter said a while ago: to look takes as long as a stage. Only copies read the unit, from the
  // L2, where it was written before it was counted; so a look need not be an acquire, which takes as long again.
  __device__ void wait_for_unit(int place, int turn, int ready) const {
    const int wanted = (turn + 1) * kAheadPieces;
    while (ready < wanted) {
      __nanosleep(40);
      ready = load_relaxed(args.ready + place);
    }
  }

  __device__ int* progress() const { return args.progress + blockIdx.x / Ahead::kBlocks * Ahead::kProgressBytes / 4; }

  // What a stage held before is read, in both blocks of the cluster, since they share x; what it will hold comes from
  // `unit`.
  __device__ void publish(int unit) {
    store_shared(window + Layout::kUnitOf + ring.slot * 4, unit);
    const int oldest = load_shared<int>(window + Layout::kUnitOf + (ring.slot + 1) % Shape::kStages * 4);
    if (oldest == published || rank != 0) return;
    store_relaxed(progress(), oldest);
    published = oldest;
  }

  __device__ void load_tile(const AheadSchedule::Wave& wave, const AheadSchedule::Tile& tile) {
    constexpr int kShare = Shape::kColumns / Ahead::kBlocks;
    const int row = tile.x * Shape::kColumns + static_cast<int>(rank) * kShare;
    int unit = args.schedule.unit(wave, 0, tile.line);
    int ready = load_relaxed(args.ready + unit % args.ring);
    for (int first = 0; first < stages; first += Ahead::kUnitStages, unit += wave.lines) {
      const int turn = unit / args.ring;
      const int place = unit - turn * args.ring;
      wait_for_unit(place, turn, ready);
      ready = load_relaxed(args.ready + (unit + wave.lines) % args.ring);
      const uint8_t* weights = args.units + int64_t{place} * Ahead::kUnitBytes +
                               static_cast<int>(rank) * Ahead::kUnitStages * Layout::kWeightBytes;
      for (int stage = first; stage < min(first + Ahead::kUnitStages, stages); ++stage) {
        const uint32_t full = window + Layout::kFull + ring.slot * 8;
        const uint32_t at = window + Layout::kStages + ring.slot * Layout::kStageBytes;
        barrier_wait(window + Layout::kEmpty + ring.slot * 8, ring.parity ^ 1);
        barrier_arrive_expecting(full, Layout::kStageBytes);
        copy_box_multicast(at + Layout::kWeightBytes + rank * kShare * 128, &args.x, stage * Ahead::kStageDepth, row,
                           full, (1 << Ahead::kBlocks) - 1);
        copy_bulk(at, weights, Layout::kWeightBytes, full);
        weights += Layout::kWeightBytes;
        publish(unit);
        ring.advance();
      }
    }
  }

  // Everything is read.
  __device__ void finish() {
    for (int i = 0; i < Shape::kStages; ++i) {
      barrier_wait(window + Layout::kEmpty + ring.slot * 8, ring.parity ^ 1);
      ring.advance();
    }
    if (rank == 0) store_relaxed(progress(), INT32_MAX);
  }
};

// A multiplying warpgroup.
template <class T, class Shape>
struct AheadMultiplier {
  using Layout = AheadLayout<Shape>;

  const AheadArgs& args;
  uint32_t window;
  int group;
  int thread;
  RingSlot<Shape::kStages> ring = {};
  float sums[Shape::kColumns / 2];

  __device__ AheadMultiplier(const AheadArgs& args_, uint32_t window_, int group_, int thread_)
      : args(args_), window(window_), group(group_), thread(thread_) {}

  __device__ void release(int slot) const {
    const int lane = thread % 32;
    if (lane < Ahead::kBlocks) barrier_arrive_cluster(cluster_address(window + Layout::kEmpty + slot * 8, lane));
  }

  __device__ void multiply(int stages) {
    int last = -1;
    for (int stage = 0; stage < stages; ++stage) {
      const uint32_t weights = window + Layout::kStages + ring.slot * Layout::kStageBytes + group * 8192;
      const uint64_t first = Shape::kTransposed ? column_descriptor(weights) : tile_descriptor(weights);
      const uint64_t second =
          tile_descriptor(window + Layout::kStages + ring.slot * Layout::kStageBytes + Layout::kWeightBytes);
      barrier_wait(window + Layout::kFull + ring.slot * 8, ring.parity);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        wgmma_shared<T, Shape::kTransposed>(sums, first + k * (Shape::kTransposed ? 128 : 2), second + k * 2,
                                            stage > 0 || k > 0);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (last >= 0) release(last);
      last = ring.slot;
      ring.advance();
    }
    wgmma_wait<0>();
    release(last);
    pin(sums);
  }

  // Rounds and writes the sums, 64 rows of x by 64 outputs at a time: fragments are transposed through slabs of shared
  // memory, of which one is filled while the other leaves, by bulk copies where rows of out begin at 16 bytes.
  __device__ void write(int64_t m0, int64_t n0) {
    const int warp = thread / 32;
    const int lane = thread % 32;
    const int64_t n = n0 + group * 64;
    const int64_t row = n + warp * 16 + lane / 4;  // of a fragment's two, the thread's first
    if (args.bias != nullptr) add_bias<T>(args.bias, row, row + 8, args.outputs, sums);
    const auto slab = [&](int s) {
      return window + Layout::kSlabs + (group * Shape::kSlabs + s % Shape::kSlabs) * Layout::kSlabBytes;
    };
    const auto put = [&](int s) {
      put_in_slab<T, kAheadSlabRows>(sums + s * kAheadSlabRows / 2, slab(s), 128, thread);
    };
    constexpr int kParts = Shape::kColumns / kAheadSlabRows;
    static_assert(kParts % 2 == 0);  // the next tile begins with the first slab
    const bool bulk = args.outputs % 8 == 0;
    SlabWriter<T, 128> writer(args.out, args.outputs, m0, args.m, n, thread);
    put(0);
#pragma unroll
    for (int s = 0; s < kParts; ++s) {
      if (bulk) {
        shared_write_fence();
        if (thread == 0) wait_for_stored_boxes();  // the slab that is filled next has left
        __syncwarp();
      }
      group_sync(kAheadGroupBarrier + group, 128);
      if (!bulk) {
        writer.template write<kAheadSlabRows / 16>(slab(s));
      } else if (thread == 0 && m0 + s * kAheadSlabRows < args.m && n < args.outputs) {
        store_box(&args.outs, static_cast<int>(n), static_cast<int>(m0) + s * kAheadSlabRows, slab(s));
      }
      __syncwarp();
      if (s + 1 < kParts) put(s + 1);
    }
  }

  // What is written has left shared memory.
  __device__ void finish() const {
    if (thread == 0) wait_for_stored_boxes();
    __syncwarp();
  }
};

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1) linear_4bit_ahead_kernel(const __grid_constant__ AheadArgs args) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Layout = AheadLayout<Shape>;
  const int tid = threadIdx.x;
  const int warpgroup = tid / 128;
  const int lane = tid % 32;
  const int warp = __shfl_sync(0xffffffff, tid / 32, 0);
  const uint32_t window = shared_address(dynamic_shared()) - Layout::kBase;
  if ((window & 0xffffff) != 0) __trap();
  const uint32_t rank = cluster_rank();
  const int cluster = blockIdx.x / Ahead::kBlocks;
  const int stages = static_cast<int>((args.depth + Ahead::kStageDepth - 1) / Ahead::kStageDepth);

  if (tid == 0) {
    prefetch_map(&args.x);
    if (args.outputs % 8 == 0) prefetch_map(&args.outs);
    for (int i = 0; i < Shape::kStages; ++i) {
      barrier_init(window + Layout::kFull + i * 8, 1);
      barrier_init(window + Layout::kEmpty + i * 8, Shape::kGroups * 4 * Ahead::kBlocks);
      store_shared(window + Layout::kUnitOf + i * 4, 0);
    }
    store_shared(window + Layout::kReadable, 0);
    barrier_init_fence();
  }
  if (tid < 16) {
    store_shared(window + Layout::kCodebook + tid * 4,
                 Shape::kAffine ? static_cast<float>(tid) : args.weight.codebook[tid]);
  }
  if (tid < 256 && args.weight.nested_absmax != nullptr) {
    store_shared(window + Layout::kNested + tid * 4, args.weight.nested_code[tid]);
  }
  __syncthreads();
  cluster_sync();

  if (warpgroup == 0) {
    leave_registers<Shape::kServiceRegisters>();
    if (warp > 0) {
      const int64_t first = int64_t{warp - 1} * gridDim.x + blockIdx.x;
      const int64_t stride = int64_t{Shape::kDecodeWarps} * gridDim.x;
      const auto decode = [&](auto decoder) {
        decoder.run(first, stride);
        decoder.finish();
      };
      if (Shape::kAffine || args.weight.nested_absmax != nullptr) {
        decode(AheadDecoder<T, Shape, true>(args, window, lane, warp == 1));
      } else {
        decode(AheadDecoder<T, Shape, false>(args, window, lane, warp == 1));
      }
    } else if (lane == 0) {
      AheadLoader<Shape> loader{args, window, rank, stages};
      for_tiles(args.schedule, cluster, [&](const auto& wave, const auto& tile) { loader.load_tile(wave, tile); });
      loader.finish();
    }
    __syncwarp();
  } else {
    take_registers<Shape::kMultiplyRegisters>();
    AheadMultiplier<T, Shape> multiplier(args, window, warpgroup - 1, tid % 128);
    for_tiles(args.schedule, cluster, [&](const auto&, const auto& tile) {
      multiplier.multiply(stages);
      multiplier.write(int64_t{tile.x} * Shape::kColumns,
                       (int64_t{tile.row} * Ahead::kBlocks + rank) * Ahead::kBlockOutputs);
    });
    multiplier.finish();
  }
  // The other block of the cluster arrives on this one's barriers until here.
  cluster_sync();
#endif
}

template <class T, class Shape>
void launch_ahead_shape(const AheadArgs& args, const AheadPlan& plan, Stream stream) {
  constexpr std::string_view kOp = "linear_4bit";
  const auto kernel = linear_4bit_ahead_kernel<T, Shape>;
  allow_shared_memory(reinterpret_cast<const void*>(kernel), kOp);
  const LaunchShape shape{.blocks = plan.blocks,
                          .threads = Shape::kThreads,
                          .shared_bytes = size_t{AheadLayout<Shape>::kBytes},
                          .cluster = Ahead::kBlocks,
                          .cooperative = true};
  launch(kOp, kernel, shape, stream, args);
}

}  // namespace qbits::cuda
