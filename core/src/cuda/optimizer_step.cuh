#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/optimizer_warp.cuh"

// The kernels of one rule over chunks of any tensors. Each thread block takes chunk after chunk, its warps the blocks
// of a chunk in turn; they never wait for each other.

namespace qbits::cuda {

inline constexpr int kOptimizerThreads = 256;
inline constexpr int kOptimizerWarps = kOptimizerThreads / 32;
// On a multiprocessor: 128 registers hold two blocks of any rule, one read while the other is computed. Without state
// 80 do, and more warps share a multiprocessor.
template <class Rule>
inline constexpr int kOptimizerBlocks = kHasState<Rule> ? 2 : 3;

// The tensor that `chunk` belongs to: a search of the whole warp, 32 parts at a time.
__device__ inline int find_tensor(const int32_t* first_chunks, int tensors, int chunk) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int low = 0;
  int high = tensors;
  while (high - low > 1) {
    const int step = (high - low + 31) / 32;
    const int probe = low + lane * step;
    const uint32_t not_behind = __ballot_sync(0xffffffffU, probe < high && first_chunks[probe] <= chunk);
    low += (31 - __clz(static_cast<int>(not_behind))) * step;
    high = min(low + step, high);
  }
  return low;
}

// The record a warp works with, in shared memory.
struct alignas(16) WarpRecord {
  OptimizerRecord record;

  __device__ void load(const OptimizerRecord& from) {
    static_assert(sizeof(OptimizerRecord) % sizeof(uint4) == 0 && sizeof(OptimizerRecord) / sizeof(uint4) <= 32);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    __syncwarp();  // every lane is done with the one before
    if (lane < static_cast<int>(sizeof(OptimizerRecord) / sizeof(uint4))) {
      reinterpret_cast<uint4*>(&record)[lane] = reinterpret_cast<const uint4*>(&from)[lane];
    }
    __syncwarp();
  }
};

// Calls body(record, blocks' first, blocks' end, chunk) for chunks of this thread block, in each of its warps.
template <class Body>
__device__ void for_each_chunk(const OptimizerWork& work, WarpRecord& own, Body&& body) {
  int first = 0;
  int behind = work.begin;  // of the tensor at hand
  for (int chunk = work.begin + static_cast<int>(blockIdx.x); chunk < work.end; chunk += static_cast<int>(gridDim.x)) {
    if (chunk >= behind) {
      const int tensor = find_tensor(work.first_chunks, work.tensors, chunk);
      first = work.first_chunks[tensor];
      behind = work.first_chunks[tensor + 1];
      own.load(work.records[tensor]);
    }
    if (own.record.c.skip != 0) return;
    const int64_t begin = (chunk - first) * kOptimizerChunkBlocks;
    const int64_t blocks = state_blocks(own.record.entry.numel, own.record.entry.row);
    body(own.record, begin, min(begin + kOptimizerChunkBlocks, blocks), chunk);
  }
}

template <class Rule, bool k8bit>
using TablesOf = std::conditional_t<k8bit, StateTables<Rule>, NoTables>;

// By all threads of a block.
template <class Rule, bool k8bit>
__device__ void prepare_tables(const StateMapValues& maps, TablesOf<Rule, k8bit>& tables) {
  if constexpr (k8bit) {
    __shared__ float thresholds[256];
    tables.first.prepare(maps.first, thresholds);
    if constexpr (Rule::kSecond > 0) tables.second.prepare(maps.second, thresholds);
  }
}

template <class Rule, bool k8bit>
__global__ void __launch_bounds__(kOptimizerThreads, kOptimizerBlocks<Rule>)
    optimizer_update(const __grid_constant__ OptimizerWork work, const __grid_constant__ StateMapValues maps) {
  __shared__ TablesOf<Rule, k8bit> tables;
  __shared__ WarpRecord records[kOptimizerWarps];
  prepare_tables<Rule, k8bit>(maps, tables);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for_each_chunk(work, records[warp], [&](const OptimizerRecord& record, int64_t begin, int64_t end, int) {
    WarpUpdate<Rule, k8bit, TablesOf<Rule, k8bit>> update(record, work, tables);
    update.run(begin + warp, end, kOptimizerWarps);
  });
}

__device__ inline double warp_sum(double x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffU, x, offset);
  return x;
}

template <class Rule, bool k8bit>
__global__ void __launch_bounds__(kOptimizerThreads, kOptimizerBlocks<Rule>)
    optimizer_norms(const __grid_constant__ OptimizerWork work, const __grid_constant__ StateMapValues maps) {
  __shared__ TablesOf<Rule, k8bit> tables;
  __shared__ WarpRecord records[kOptimizerWarps];
  __shared__ double of_warps[2][kOptimizerWarps];
  prepare_tables<Rule, k8bit>(maps, tables);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for_each_chunk(work, records[warp], [&](const OptimizerRecord& record, int64_t begin, int64_t end, int chunk) {
    const WarpUpdate<Rule, k8bit, TablesOf<Rule, k8bit>> update(record, work, tables);
    LayerNorms sum;
    for (int64_t block = begin + warp; block < end; block += kOptimizerWarps) update.add_norms(block, sum);
    sum.p = warp_sum(sum.p);
    sum.u = warp_sum(sum.u);
    if (threadIdx.x % 32 == 0) {
      of_warps[0][warp] = sum.p;
      of_warps[1][warp] = sum.u;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < kOptimizerWarps; ++w) {
        sum.p += of_warps[0][w];
        sum.u += of_warps[1][w];
      }
      work.norms[chunk] = sum;
    }
    __syncthreads();
  });
}

template <class Kernel>
void launch_on_chunks(Kernel* kernel, const OptimizerWork& work, const StateMapValues& maps, Stream stream) {
  constexpr std::string_view op = "optimizer_step";
  const int64_t blocks = std::min<int64_t>(work.end - work.begin, resident_blocks(kernel, kOptimizerThreads, 0, op));
  launch(op, kernel, {.blocks = blocks, .threads = kOptimizerThreads}, stream, work, maps);
}

template <class Rule>
void launch_optimizer_norms(const OptimizerWork& work, bool is_8bit, const StateMapValues& maps, Stream stream) {
  if constexpr (kHasState<Rule>) {  // the others have no LayerScaling
    dispatch_bool(is_8bit, [&](auto eight) { launch_on_chunks(optimizer_norms<Rule, eight>, work, maps, stream); });
  }
}

template <class Rule>
void launch_optimizer_update(const OptimizerWork& work, bool is_8bit, const StateMapValues& maps, Stream stream) {
  dispatch_bool(is_8bit, [&](auto eight) {
    if constexpr (!eight || kHasState<Rule>) {
      launch_on_chunks(optimizer_update<Rule, eight>, work, maps, stream);
    }
  });
}

}  // namespace qbits::cuda
