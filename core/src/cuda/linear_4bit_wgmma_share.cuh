#pragma once

#include "cuda/linear_4bit_wgmma_write.cuh"

// Tiles whose depth several blocks share. Each block leaves its sums in the workspace, and a warp that has nothing else
// to do counts it; the last adds all shares, always in their order, and writes the tile. Nobody waits for another
// block, so the kernel ends even where its blocks do not all run at once.
//
// The workspace comes with any contents: counts begin at a number of this launch alone, its low 16 bits 0, which takes
// the place of whatever is there. The last block clears the count, so that a launch repeated from a graph starts
// afresh.

namespace qbits::cuda {

__device__ inline uint64_t compare_and_swap(uint64_t* at, uint64_t expected, uint64_t value) {
  uint64_t seen;
  asm volatile("atom.acq_rel.gpu.global.cas.b64 %0, [%1], %2, %3;\n"
               : "=l"(seen)
               : "l"(at), "l"(expected), "l"(value)
               : "memory");
  return seen;
}

// True in the last of `shares` calls.
__device__ inline bool count_share(uint64_t* count, int shares, uint64_t nonce) {
  uint64_t expected = nonce + shares - 1;
  while (true) {
    const bool counts = (expected ^ nonce) < 0x10000;  // otherwise left by somebody else
    const bool last = counts && expected == nonce + shares - 1;
    const uint64_t value = last ? 0 : counts ? expected + 1 : nonce + 1;
    const uint64_t seen = compare_and_swap(count, expected, value);
    if (seen == expected) return last;
    expected = seen;
  }
}

__device__ inline void add(float* sums, const float4& v) {
  sums[0] += v.x;
  sums[1] += v.y;
  sums[2] += v.z;
  sums[3] += v.w;
}

// Where shares lie in the workspace.
template <class Computer>
struct WgmmaShares {
  static constexpr int kThreads = Computer::kComputeThreads;
  static constexpr int kSums = Computer::kSums;

  const WgmmaArgs& args;

  __device__ uint64_t* count(int tile) const {
    return static_cast<uint64_t*>(args.workspace) + tile - args.schedule.whole_tiles;
  }
  __device__ float4* share(int tile, int block, int thread) const {
    float4* const shares = reinterpret_cast<float4*>(static_cast<uint64_t*>(args.workspace) + 2 * args.schedule.blocks);
    return shares + int64_t{args.schedule.share(tile, block)} * (kSums / 4 * kThreads) + thread;
  }

  // The sums of this block's share.
  __device__ void leave(const Computer& computer, int tile, int thread) const {
    float4* const to = share(tile, static_cast<int>(blockIdx.x), thread);
#pragma unroll
    for (int i = 0; i < kSums; i += 4) {
      __stcg(to + i / 4 * kThreads,
             make_float4(computer.sums[i], computer.sums[i + 1], computer.sums[i + 2], computer.sums[i + 3]));
    }
  }

  // The sums of all shares, some of which are under way at once.
  __device__ void gather(Computer& computer, int tile, int thread) const {
    constexpr int kPart = kSums < 32 ? kSums : 32;
    constexpr int kAtOnce = kSums > 64 ? 1 : 4;  // as registers allow
    const int first = args.schedule.first_block(tile);
    const int last = args.schedule.last_block(tile);
#pragma unroll
    for (int part = 0; part < kSums; part += kPart) {
#pragma unroll
      for (int i = 0; i < kPart; ++i) computer.sums[part + i] = 0.0F;
      for (int block = first; block <= last; block += kAtOnce) {
        float4 shares[kAtOnce][kPart / 4];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const bool exists = block + j <= last;
          const float4* const from = share(tile, exists ? block + j : last, thread) + part / 4 * kThreads;
#pragma unroll
          for (int i = 0; i < kPart / 4; ++i) shares[j][i] = exists ? __ldcg(from + i * kThreads) : float4{};
        }
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
          for (int i = 0; i < kPart / 4; ++i) add(computer.sums + part + i * 4, shares[j][i]);
        }
      }
    }
  }
};

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
  const uint32_t last = window + WgmmaLayout<Shape>::kShareLast + group * 4;
  group_sync(kWgmmaGroupBarrier + group, 128);
  if (thread == 0) store_shared(last, uint32_t{count_share(counts + place, 2, args.nonce)});
  __syncwarp();
  group_sync(kWgmmaGroupBarrier + group, 128);
  if (load_shared<uint32_t>(last) == 0) return false;
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
