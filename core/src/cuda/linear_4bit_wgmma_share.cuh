#pragma once

#include "cuda/linear_4bit_wgmma.cuh"

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
          for (int i = 0; i < kPart / 4; ++i) {
            float* const sums = computer.sums + part + i * 4;
            sums[0] += shares[j][i].x;
            sums[1] += shares[j][i].y;
            sums[2] += shares[j][i].z;
            sums[3] += shares[j][i].w;
          }
        }
      }
    }
  }
};

// Where two clusters share a tile: each block leaves the sums of its rows of out and is counted; of the two that have
// the same rows, the second adds what the first left. False in the first.
template <class Shape, int kVectors, int kMine>
__device__ bool add_other_cluster(const WgmmaArgs& args, uint32_t window, int tile, int thread, float4 (&sums)[kMine]) {
  const WgmmaSchedule& schedule = args.schedule;
  const int place = tile * schedule.splits + static_cast<int>(cluster_rank());
  uint64_t* const counts = static_cast<uint64_t*>(args.workspace);
  float4* const shares = reinterpret_cast<float4*>(counts + schedule.whole_tiles * schedule.splits);
  const int cluster = static_cast<int>(blockIdx.x) / schedule.splits % 2;
  const auto share = [&](int of) { return shares + (int64_t{place} * 2 + of) * kVectors + thread; };
  const auto is_mine = [&](int i) { return thread + i * Shape::kComputeThreads < kVectors; };
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    if (is_mine(i)) __stcg(share(cluster) + i * Shape::kComputeThreads, sums[i]);
  }
  const uint32_t last = window + WgmmaLayout<Shape>::kShareLast;
  group_sync(kWgmmaAllBarrier, Shape::kComputeThreads);
  if (thread == 0) store_shared(last, uint32_t{count_share(counts + place, 2, args.nonce)});
  __syncwarp();
  group_sync(kWgmmaAllBarrier, Shape::kComputeThreads);
  if (load_shared<uint32_t>(last) == 0) return false;
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    if (!is_mine(i)) continue;
    const float4 v = __ldcg(share(cluster ^ 1) + i * Shape::kComputeThreads);
    sums[i] = make_float4(sums[i].x + v.x, sums[i].y + v.y, sums[i].z + v.z, sums[i].w + v.w);
  }
  return true;
}

// Where the blocks of a cluster share a tile: its sums are added in their order, each block writes some rows of out.
template <int kSplits, class T, class Shape>
__device__ void add_splits(WgmmaComputer<T, Shape>& computer, const WgmmaArgs& args, int tile, int m0, int n0,
                           int thread) {
  using Layout = WgmmaLayout<Shape>;
  constexpr int kPitch = Layout::kSumPitch;
  const int t = thread % 4;
  const uint32_t own = computer.window + Layout::kX + computer.group / Shape::kRowGroups * Layout::kSumBytes;
  group_sync(kWgmmaAllBarrier, Shape::kComputeThreads);  // nobody reads the rings any more
#pragma unroll
  for (int i = 0; i < Shape::kColumns / 2; ++i) {
    const int m = i / 4 * 8 + 2 * t + i % 2;
    const int n = computer.decoder.output_row(i % 4 / 2);
    store_shared(own + (m * kPitch + n) * 4, computer.sums[i]);
  }
  cluster_sync();
  const int64_t rows = args.outputs;
  const T* const bias = static_cast<const T*>(args.bias);
  T* const out = static_cast<T*>(args.out);
  constexpr int kVectors = Layout::kRows / 4;
  constexpr int kShare = Shape::kColumns / kSplits;
  constexpr int kMine = (kShare * kVectors + Shape::kComputeThreads - 1) / Shape::kComputeThreads;
  constexpr bool kAll = kMine * Shape::kComputeThreads == kShare * kVectors;  // threads have something to do
  constexpr int kParts = kSplits * Shape::kDepthGroups;
  const int first = static_cast<int>(cluster_rank()) * kShare;
  const auto m_of = [&](int i) { return first + (thread + i * Shape::kComputeThreads) / kVectors; };
  const auto n_of = [&](int i) { return (thread + i * Shape::kComputeThreads) % kVectors * 4; };
  // All are under way before the first is added.
  float4 parts[kMine][kParts];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
#pragma unroll
    for (int p = 0; p < kParts; ++p) {
      const uint32_t from = computer.window + Layout::kX + p % Shape::kDepthGroups * Layout::kSumBytes;
      parts[i][p] = load_cluster(from + (m_of(i) * kPitch + n_of(i)) * 4, p / Shape::kDepthGroups);
    }
  }
  float4 sums[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    sums[i] = parts[i][0];
#pragma unroll
    for (int p = 1; p < kParts; ++p) {
      const float4& v = parts[i][p];
      sums[i] = make_float4(sums[i].x + v.x, sums[i].y + v.y, sums[i].z + v.z, sums[i].w + v.w);
    }
  }
  if constexpr (kSplits == 2) {
    if (args.schedule.clusters > 1 &&
        !add_other_cluster<Shape, kShare * kVectors>(args, computer.window, tile, thread, sums))
      return;
  }
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int m = m_of(i);
    const int n = n_of(i);
    if (m0 + m >= args.m || n0 + n >= rows || (!kAll && m >= first + kShare)) continue;
    const float values[4] = {sums[i].x, sums[i].y, sums[i].z, sums[i].w};
    alignas(8) T rounded[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float add = bias != nullptr && n0 + n + j < rows ? to_float(bias[n0 + n + j]) : 0.0F;
      rounded[j] = from_float<T>(values[j] + add);
    }
    T* const to = out + int64_t{m0 + m} * rows + n0 + n;
    if (rows % 4 == 0) {
      *reinterpret_cast<uint2*>(to) = reinterpret_cast<const uint2&>(rounded);
    } else {
      for (int j = 0; j < 4 && n0 + n + j < rows; ++j) to[j] = rounded[j];
    }
  }
}

}  // namespace qbits::cuda
