#pragma once

#include "cuda/linear_4bit_stream_scales.cuh"

// The service warps of the Stream kernel: one copies codes, two bring scales, one adds and writes sums, and before that
// brings the map of double quantization.

namespace qbits::cuda {

// Bulk copies of rows of codes, a stage ahead of another until the ring is full. What lies beyond the weight keeps
// old codes: their rows are not written, and their columns meet zeros of x. A service warp keeps pace only if its
// loops are short: addresses are the same in all lanes, so that the uniform datapath adds them up.
template <class Block>
__device__ void stream_copy_codes(const Block& block) {
  const StreamArgs& args = block.args;
  StreamBarriers& barriers = Block::barriers();
  StreamStage stage{.parity = 1};
  const int64_t row_bytes = args.weight.cols / 2;
  const bool elected = elect_one();
  // Copies that every block starts at once come in together, late: those of the first ring are given time to arrive.
  const int stage_clocks = (block.groups * 16 * block.code_pitch + block.scale_bytes * (Block::kIsAffine ? 2 : 1)) /
                           Linear4bitStream::kFirstBytesPerClock;
  const int64_t start = clock64();
  int filled = 0;
  block.for_runs([&](const StreamRun& run) {
    block.for_tiles(run, [&](int phase, int tile) {
      if (filled < args.stages) {
        while (clock64() - start < int64_t{filled} * stage_clocks) {
        }
        ++filled;
      }
      const int bytes = (block.k_end(phase) - block.k_begin(phase)) / 2;
      const int valid_rows = min(block.groups * 16, block.rows - block.row(tile));
      mbarrier_wait(&barriers.free[stage.index], stage.parity);
      uint64_t* const full = &barriers.full[stage.index];
      if (elected) mbarrier_arrive_expect(full, valid_rows * bytes);
      const uint8_t* from =
          args.weight.codes + ((run.base + block.row(tile)) * args.weight.cols + block.k_begin(phase)) / 2;
      uint8_t* to = dynamic_shared() + block.codes(stage.index);
#pragma unroll 4
      for (int row = 0; row < valid_rows; ++row) {
        if (elected) copy_bulk(to, from, bytes, full);
        from += row_bytes;
        to += block.code_pitch;
      }
      stage.next(args.stages);
    });
  });
}

// By a warp that has no work yet: those that bring scales would wait for one another.
template <class Block>
__device__ void stream_bring_map(const Block& block) {
  if constexpr (!Block::kIsAffine) {
    const Weight4bitView& w = block.args.weight;
    if (w.nested_absmax == nullptr) return;
    float values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = w.nested_code[i * 32 + block.lane];
#pragma unroll
    for (int i = 0; i < 8; ++i) Block::nested_code()[i * 32 + block.lane] = values[i];
    __syncwarp();
    if (block.lane == 0) mbarrier_arrive(&Block::barriers().nested);
  }
}

// Sums of a lane and column tile (rows g and g + 8, columns 2 t and 2 t + 1) into the result. n0: the first row.
template <class T, class Block>
__device__ void stream_write(const Block& block, const StreamRun& run, int n0, int ct, float4 sum) {
  const StreamArgs& args = block.args;
  const T* const bias = static_cast<const T*>(args.bias);
  const float values[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int m = run.m0 + ct * 8 + 2 * (block.lane % 4) + i % 2;
    const int n = n0 + i / 2 * 8 + block.lane / 4;
    if (m >= run.m_end || n >= block.rows) continue;
    const float value = values[i] * args.codebook.factor;
    static_cast<T*>(args.out)[int64_t{m} * block.rows + n] =
        from_float<T>(bias != nullptr ? value + to_float(bias[run.base + n]) : value);
  }
}

__device__ inline void add(float4& sum, const float4& value) {
  sum.x += value.x;
  sum.y += value.y;
  sum.z += value.z;
  sum.w += value.w;
}

// Adds, in order, what the warps of each group of rows leave, phase after phase. Every block of the cluster has started
// by now.
template <class T, class Block, int kColumnTiles>
__device__ void stream_take_sums(const Block& block) {
  const StreamArgs& args = block.args;
  StreamBarriers& barriers = Block::barriers();
  const int items = block.groups * kColumnTiles;
  int parity = 0;
  int finisher = 0;  // the block of the cluster that finishes this tile: each in its turn
  int own_round = 0;
  const int own_rounds = block.own_rounds();
  block.for_runs([&](const StreamRun& run) {
    float4* earlier = nullptr;  // the lane's sums of a tile's earlier phases
    block.for_tiles(run, [&](int phase, int tile) {
      if (Block::kPhased && tile == run.first) earlier = block.cluster_sums() + block.lane;
      mbarrier_wait(&barriers.sums_full, parity);
      parity ^= 1;
      for (int item = 0; item < items; ++item) {
        const float4* const parts =
            block.sums(item / kColumnTiles * args.parts) + item % kColumnTiles * Block::kSumPitch;
        float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
        float4 batch[Linear4bitStream::kMaxWarps];  // all loads at once
#pragma unroll
        for (int p = 0; p < Linear4bitStream::kMaxWarps; ++p) {
          batch[p] = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
          if (p < args.parts) batch[p] = parts[p * kColumnTiles * Block::kSumPitch];
        }
#pragma unroll
        for (int p = 0; p < Linear4bitStream::kMaxWarps; ++p) add(sum, batch[p]);
        if (Block::kPhased && phase > 0) add(sum, earlier[item * 32]);
        if (Block::kPhased && phase + 1 < block.phases()) {
          earlier[item * 32] = sum;
        } else if (args.splits > 1) {
          const int at = (block.split * own_rounds + own_round) * items + item;
          store_in_cluster(block.cluster_sums() + at * 32 + block.lane, &barriers.splits_full, finisher, sum);
        } else {
          stream_write<T>(block, run, block.row(tile) + item / kColumnTiles * 16, item % kColumnTiles, sum);
        }
      }
      __syncwarp();
      if (block.lane == 0) mbarrier_arrive(&barriers.sums_free);
      if constexpr (Block::kPhased) earlier += items * 32;
      if (++finisher == args.splits) {
        finisher = 0;
        ++own_round;
      }
    });
  });
}

// The end of a cluster: each block adds, in order, the splits of its tiles.
template <class T, class Block, int kColumnTiles>
__device__ void stream_add_splits(const Block& block) {
  const StreamArgs& args = block.args;
  const int items = block.groups * kColumnTiles;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  bool waits = true;
  // Of a cluster's tiles, numbered in its order, this block finishes split, split + splits, ...
  int before = 0;  // those of earlier runs
  block.for_runs([&](const StreamRun& run) {
    const int count = block.count(run);
    const int items_end = block.own(before + count) * items;
    for (int i = block.own(before) * items + warp; i < items_end; i += warps) {
      const Divisor::Result at = args.by_items.divide(i);
      const int number = (at.quotient << args.split_shift) + block.split;
      const int row = block.row(run.first + (number - before) * run.stride) + at.rest / kColumnTiles * 16;
      const float4* const splits = block.cluster_sums() + i * 32 + block.lane;
      if (waits) mbarrier_wait(&Block::barriers().splits_full, 0);
      waits = false;
      float4 sum = make_float4(0.0F, 0.0F, 0.0F, 0.0F);
      for (int s = 0; s < args.splits; ++s) add(sum, splits[s * block.own_rounds() * items * 32]);
      stream_write<T>(block, run, row, at.rest % kColumnTiles, sum);
    }
    before += count;
  });
  if (waits) mbarrier_wait(&Block::barriers().splits_full, 0);
}

}  // namespace qbits::cuda
