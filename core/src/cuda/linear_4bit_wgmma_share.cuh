#pragma once

#include "cuda/linear_4bit_wgmma_write.cuh"

// Tiles whose depth several blocks share: each but the last leaves its sums in the workspace and sets its flag there;
// the last adds them to its own, always in their order, and writes the tile. It waits for blocks before it alone, which
// were started before it, so the kernel ends even where its blocks do not all run at once.
//
// The workspace comes with any contents: a flag is set when it is a number of this launch alone. Who has seen it clears
// it, so that a launch repeated from a graph starts afresh.

namespace qbits::cuda {

__device__ inline uint64_t compare_and_swap(uint64_t* at, uint64_t expected, uint64_t value) {
  uint64_t seen;
  asm volatile("atom.acq_rel.gpu.global.cas.b64 %0, [%1], %2, %3;\n"
               : "=l"(seen)
               : "l"(at), "l"(expected), "l"(value)
               : "memory");
  return seen;
}

__device__ inline void store_release(uint64_t* at, uint64_t value) {
  asm volatile("st.release.gpu.global.b64 [%0], %1;\n" ::"l"(at), "l"(value) : "memory");
}

__device__ inline void add(float* sums, const float4& v) {
  sums[0] += v.x;
  sums[1] += v.y;
  sums[2] += v.z;
  sums[3] += v.w;
}

// The shares in the workspace, one of each block at most.
template <class T, class Shape>
struct WgmmaShares {
  using Layout = WgmmaLayout<Shape>;
  using Computer = WgmmaComputer<T, Shape>;
  static constexpr int kThreads = Shape::kComputeThreads;
  static constexpr int kFlagWords = 2;
  // Of a thread's sums, those in one stage.
  static constexpr int kStageSums = Layout::kShareStageBytes / kThreads / 4;

  const WgmmaArgs& args;
  uint32_t window;

  __device__ uint64_t* flag(int block) const { return static_cast<uint64_t*>(args.workspace) + block * kFlagWords; }
  __device__ uint8_t* share(int block) const {
    return reinterpret_cast<uint8_t*>(flag(args.schedule.blocks)) + int64_t{block} * Layout::kShareBytes;
  }

  // This block's sums. Copies read them.
  __device__ void leave(const Computer& computer, int thread) const {
    float4* const to = reinterpret_cast<float4*>(share(static_cast<int>(blockIdx.x))) + thread;
#pragma unroll
    for (int i = 0; i < Computer::kSums; i += 4) {
      __stcg(to + i / 4 * kThreads,
             make_float4(computer.sums[i], computer.sums[i + 1], computer.sums[i + 2], computer.sums[i + 3]));
    }
    fence_copies();
    __syncwarp();
    if (computer.lane == 0) barrier_arrive(window + Layout::kShareLeft);
  }

  // By one thread that computes nothing.
  __device__ void tell() const {
    barrier_wait(window + Layout::kShareLeft, 0);
    store_release(flag(static_cast<int>(blockIdx.x)), args.nonce);
  }

  // By the thread that loads: has the sums of the blocks before this one copied to where x, or codes, would come next.
  // Nothing else does after them.
  template <class Ring>
  __device__ void bring(Ring ring, int tile) const {
    for (int block = args.schedule.first_block(tile); block < static_cast<int>(blockIdx.x); ++block) {
      while (compare_and_swap(flag(block), args.nonce, 0) != args.nonce) __nanosleep(40);
      for (int i = 0; i < Layout::kShareStages; ++i) {
        const int slot = ring.x().slot;
        const uint32_t full = window + Layout::kXFull + slot * 8;
        barrier_wait(window + Layout::kXEmpty + slot * 8, ring.x().parity ^ 1);
        if constexpr (!Shape::kCodesApart) {  // there are no scales
          for (int warp = 0; warp < kWgmmaScaleThreads / 32; ++warp) barrier_arrive(full);
        }
        barrier_arrive_expecting(full, Layout::kShareStageBytes);
        copy_bulk(window + Layout::kShare + slot * Layout::kShareStageBytes,
                  share(block) + i * Layout::kShareStageBytes, Layout::kShareStageBytes, full);
        ring.advance();
      }
    }
  }

  // Adds them.
  __device__ void take(Computer& computer, const typename Computer::Ring& ring, int tile, int thread) const {
    RingSlot<Shape::kStages> at{ring.x().slot * Shape::kUnitStages, ring.x().parity};
    for (int block = args.schedule.first_block(tile); block < static_cast<int>(blockIdx.x); ++block) {
#pragma unroll
      for (int i = 0; i < Layout::kShareStages; ++i) {
        barrier_wait(window + Layout::kXFull + at.slot * 8, at.parity);
        const uint32_t from = window + Layout::kShare + at.slot * Layout::kShareStageBytes + thread * 16;
#pragma unroll
        for (int j = 0; j < kStageSums; j += 4) {
          add(computer.sums + i * kStageSums + j, load_shared<float4>(from + j / 4 * kThreads * 16));
        }
        __syncwarp();
        if (computer.lane == 0) barrier_arrive(window + Layout::kXEmpty + at.slot * 8);
        at.advance();
      }
    }
  }
};

// True in the second of two calls.
__device__ inline bool count_second(uint64_t* count, uint64_t nonce) {
  uint64_t expected = nonce;
  while (true) {
    const bool second = expected == nonce;
    const uint64_t seen = compare_and_swap(count, expected, second ? 0 : nonce);
    if (seen == expected) return second;
    expected = seen;
  }
}

// Where two clusters share a tile: a warpgroup leaves the sums of its rows of out and is counted; of the two that have
// the same rows, the second adds what the first left. False in the first. `place`: of the rows, among all tiles.
template <class Shape, int kSums>
__device__ bool add_other_cluster(const WgmmaArgs& args, uint32_t window, int group, int place, int places, int thread,
                                  float (&sums)[kSums]) {
  uint64_t* const counts = static_cast<uint64_t*>(args.workspace);
  float4* const shares = reinterpret_cast<float4*>(counts + (places + 1) / 2 * 2);
  const int cluster = static_cast<int>(blockIdx.x) / args.schedule.splits % 2;
  const auto share = [&](int of) { return shares + (int64_t{place} * 2 + of) * (kSums / 4 * 128) + thread; };
#pragma unroll
  for (int i = 0; i < kSums; i += 4) {
    __stcg(share(cluster) + i / 4 * 128, make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]));
  }
  const uint32_t second = window + WgmmaLayout<Shape>::kShareSecond + group * 4;
  group_sync(kWgmmaGroupBarrier + group, kWgmmaGroupThreads);
  if (thread == 0) store_shared(second, uint32_t{count_second(counts + place, args.nonce)});
  __syncwarp();
  group_sync(kWgmmaGroupBarrier + group, kWgmmaGroupThreads);
  if (load_shared<uint32_t>(second) == 0) return false;
#pragma unroll
  for (int i = 0; i < kSums; i += 4) add(sums + i, __ldcg(share(cluster ^ 1) + i / 4 * 128));
  return true;
}

// Where the blocks of a cluster share a tile, or warpgroups its depth, each has a part of the same sums: every part
// finishes a share of the rows of x, 16 at least, and adds to its own sums those that the others, in their order, have
// of it. They lie in shared memory, in place of the rings, as threads have them.
template <int kSplits, class T, class Shape>
__device__ void add_splits(WgmmaComputer<T, Shape>& computer, const WgmmaArgs& args, int tile_number, WgmmaTile tile,
                           int thread) {
  using Layout = WgmmaLayout<Shape>;
  constexpr int kParts = kSplits * Shape::kDepthGroups;
  constexpr int kFinishers = wgmma_finishers(Shape::kColumns, kParts);
  constexpr int kSums = Shape::kColumns / 2 / kFinishers;  // of a thread
  const int row_group = computer.group % Shape::kRowGroups;
  const int part = static_cast<int>(cluster_rank()) * Shape::kDepthGroups + computer.group / Shape::kRowGroups;
  const auto sums_at = [&](int group, int finisher) {
    return computer.window + Layout::kX + group * Layout::kSumBytes + (finisher * (kSums / 4) * 128 + thread) * 16;
  };
  group_sync(kWgmmaAllBarrier, Shape::kComputeThreads);  // nobody reads the rings any more
  float mine[kSums];
#pragma unroll
  for (int p = 0; p < kFinishers; ++p) {
    const float* const sums = computer.sums + p * kSums;
    if (p == part) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) mine[i] = sums[i];
    } else {
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        store_shared(sums_at(computer.group, p) + i / 4 * 128 * 16,
                     make_float4(sums[i], sums[i + 1], sums[i + 2], sums[i + 3]));
      }
    }
  }
  cluster_sync();
  if (part >= kFinishers) return cluster_arrive();
  // All are under way before the first is added.
  float4 others[kParts - 1][kSums / 4];
#pragma unroll
  for (int o = 0; o < kParts - 1; ++o) {
    const int other = o < part ? o : o + 1;
    const uint32_t from = sums_at(other % Shape::kDepthGroups * Shape::kRowGroups + row_group, part);
#pragma unroll
    for (int i = 0; i < kSums / 4; ++i) {
      others[o][i] = load_cluster(from + i * 128 * 16, other / Shape::kDepthGroups);
    }
  }
#pragma unroll
  for (int o = 0; o < kParts - 1; ++o) {
#pragma unroll
    for (int i = 0; i < kSums / 4; ++i) add(mine + i * 4, others[o][i]);
  }
  if constexpr (kSplits == 2) {
    if (args.schedule.clusters > 1) {
      const int place = (tile_number * Shape::kRowGroups + row_group) * kFinishers + part;
      const int places = args.schedule.whole_tiles * Shape::kRowGroups * kFinishers;
      if (!add_other_cluster<Shape>(args, computer.window, computer.group, place, places, thread, mine))
        return cluster_arrive();
    }
  }
  tile.m0 += part * kSums * 2;
  write_sums(computer, args, tile, thread, mine);
  cluster_arrive();  // what this thread read of others has gone through a barrier of the warpgroup
}

}  // namespace qbits::cuda
