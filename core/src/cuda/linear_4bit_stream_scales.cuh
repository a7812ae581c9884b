#pragma once

#include "cuda/linear_4bit_stream_block.cuh"

// The two warps of a block of the Stream kernel that bring scales, those of every other stage each, as float32.

namespace qbits::cuda {

// How scales lie in memory; each kind has a loop of its own.
enum class StreamScales : uint8_t { Float32, BFloat16, Float16, Nested };

// Four scales that lie side by side, as loaded: floats, or 16-bit floats, or codes and their absmax.
template <StreamScales kKind>
__device__ uint4 stream_load_scales(const Weight4bitView& w, const void* data, int64_t i) {
  if constexpr (kKind == StreamScales::Float32) {
    return *reinterpret_cast<const uint4*>(static_cast<const float*>(data) + i);
  } else if constexpr (kKind == StreamScales::Nested) {
    const uint32_t codes = *reinterpret_cast<const uint32_t*>(static_cast<const uint8_t*>(data) + i);
    return make_uint4(codes, __float_as_uint(w.nested_absmax[i / kNestedBlockSize]), 0, 0);
  } else {
    const uint2 pairs = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(data) + i);
    return make_uint4(pairs.x, pairs.y, 0, 0);
  }
}

template <StreamScales kKind>
__device__ float4 stream_finish_scales(uint4 raw, const float* nested_code, float offset) {
  const auto value = [&](int j) {
    if constexpr (kKind == StreamScales::Nested) {
      return fmaf(nested_code[raw.x >> (8 * j) & 255], __uint_as_float(raw.y), offset);
    } else {
      const uint16_t bits = static_cast<uint16_t>((j < 2 ? raw.x : raw.y) >> (16 * (j % 2)));
      return kKind == StreamScales::BFloat16 ? to_float(__ushort_as_bfloat16(bits)) : to_float(__ushort_as_half(bits));
    }
  };
  if constexpr (kKind == StreamScales::Float32) {
    return reinterpret_cast<const float4&>(raw);
  } else {
    return make_float4(value(0), value(1), value(2), value(3));
  }
}

// Scales of a lane, four at a time: what it shares with other lanes, and where its own lie. A power of two of lanes
// takes a row, so that lanes step from row to row.
template <class T, class Block, int kChunk, bool kAffine>
struct StreamFours {
  const Block& block;
  int row_fours;  // of a row of the split or phase
  int row_shift;  // log2 of the lanes of a row
  int first_row;
  int column;
  int step_rows;
  int tile_rows;

  __device__ explicit StreamFours(const Block& b)
      : block(b),
        row_fours(b.args.slots * Block::kSlotChunks / 4),
        row_shift(row_fours > 1 ? 32 - __clz(b.args.slots * Block::kSlotChunks / 4 - 1) : 0),
        first_row(b.lane >> row_shift),
        column(b.lane & ((1 << row_shift) - 1)),
        step_rows(32 >> row_shift),
        tile_rows(b.groups * 16) {}

  // Rows of a tile that the lane stores.
  __device__ int rows() const { return column < row_fours ? tile_rows : 0; }
  __device__ int k(int phase) const { return block.k_begin(phase) + column * 4 * kChunk; }
  // And those of them that the weight has.
  __device__ int rows(int phase, int tile) const {
    return k(phase) < block.k_end(phase) ? min(rows(), block.rows - block.row(tile)) : 0;
  }

  __device__ float4* place(int stage, int row) const {
    if constexpr (Block::kScalesInGaps) {
      return reinterpret_cast<float4*>(dynamic_shared() + stage * block.gap_stage_bytes() +
                                       block.gap_scale(row, column));
    }
    return reinterpret_cast<float4*>(dynamic_shared() + block.scales(stage)) + row * (block.scale_pitch / 4) + column;
  }

  // Zeros as StreamAffineCodes has codes, scaled and negative.
  __device__ void put(float4* to, float4 scale, float4 zero) const {
    to[0] = scale;
    if constexpr (kAffine) {
      const auto scaled = [](float z, float s) {
        return fmaf(z, -StreamAffineCodes<T>::kUnit, -StreamAffineCodes<T>::kOffset) * s;
      };
      to[block.scale_bytes / 16] = make_float4(scaled(zero.x, scale.x), scaled(zero.y, scale.y),
                                               scaled(zero.z, scale.z), scaled(zero.w, scale.w));
    }
  }
};

// The stages of a warp that brings every other one. Stages take turns from run to run of experts.
template <class Block>
struct StreamTurns {
  // Where in a run: its tiles, phase after phase.
  struct Place {
    int phase;
    int tile;
    int row;
  };

  const Block& block;
  StreamStage stage{.parity = 1};
  int next_tile;  // the first of a run that is this warp's

  __device__ StreamTurns(const Block& b, int turn) : block(b), next_tile(turn) {
    if (turn == 1) stage.next(block.args.stages);
  }

  __device__ void settle(const StreamRun& run, Place& place) const {
    if constexpr (Block::kPhased) {
      for (; place.tile >= run.last && place.phase < block.args.phases; ++place.phase) {
        place.tile -= block.count(run) * run.stride;
      }
    }
  }
  __device__ Place first(const StreamRun& run) const {
    Place place{0, run.first + next_tile * run.stride, 0};
    settle(run, place);
    return place;
  }
  __device__ void advance(const StreamRun& run, Place& place) const {
    place.row = 0;
    place.tile += 2 * run.stride;
    settle(run, place);
  }
  __device__ bool over(const StreamRun& run, const Place& place) const {
    return Block::kPhased ? place.phase >= block.args.phases : place.tile >= run.last;
  }

  __device__ void wait() const { mbarrier_wait(&Block::barriers().free[stage.index], stage.parity); }
  __device__ void finish_stage() {
    __syncwarp();
    if (block.lane == 0) mbarrier_arrive<Block::kScaleArrivals>(&Block::barriers().full[stage.index]);
    next();
  }
  __device__ void finish_copied_stage() {
    mbarrier_arrive_copied(&Block::barriers().full[stage.index]);
    next();
  }
  __device__ void next() {
    stage.next(block.args.stages);
    stage.next(block.args.stages);
  }
  __device__ void finish(const StreamRun& run) {
    if constexpr (Block::kIsGrouped) next_tile = (next_tile + block.count(run)) % 2;
  }
};

// The scales of every other stage, in float32, where they come by fours.
template <class T, class Block, int kChunk, bool kAffine, StreamScales kKind>
__device__ void stream_bring_scales(const Block& block, int turn) {
  // Of a lane's fours, which are loaded before those that came last are stored: the fewer, the longer a round waits for
  // them, and the more often a warp begins anew. Two batches of them have to find registers.
  constexpr int kWords =
      kKind == StreamScales::Nested ? 2 : (kKind == StreamScales::Float32 ? 4 : 2) * (kAffine ? 2 : 1);
  constexpr int kBatch = Block::kShares && kWords > 2 ? 4 : 8;
  struct Batch {
    uint4 scale[kBatch];
    uint4 zero[kBatch];
  };
  const Weight4bitView& w = block.args.weight;
  const StreamFours<T, Block, kChunk, kAffine> fours(block);
  const int row_scales = static_cast<int>(w.cols / kChunk);
  bool has_map = kKind != StreamScales::Nested;  // or need not wait for it
  StreamTurns<Block> turns(block, turn);
  block.wait_to_read_scales();
  const float offset = kKind == StreamScales::Nested ? *w.offset : 0.0F;
  block.for_runs([&](const StreamRun& run) {
    using Place = typename StreamTurns<Block>::Place;
    Place ahead = turns.first(run);  // its row: of a batch, the first that any lane has
    Place at = ahead;
    const auto advance = [&](Place& place) {
      place.row += kBatch * fours.step_rows;
      if (place.row >= fours.tile_rows) turns.advance(run, place);
    };
    const auto load = [&](Batch& batch) {
      if (turns.over(run, ahead)) return;
      const int row = ahead.row + fours.first_row;
      const int valid_rows = fours.rows(ahead.phase, ahead.tile);
      int64_t from = int64_t{run.base + block.row(ahead.tile) + row} * row_scales + fours.k(ahead.phase) / kChunk;
#pragma unroll
      for (int i = 0; i < kBatch; ++i, from += fours.step_rows * row_scales) {
        if (i == kBatch / 2 && ahead.row + i * fours.step_rows >= fours.tile_rows) break;
        const bool valid = row + i * fours.step_rows < valid_rows;
        batch.scale[i] = make_uint4(0, 0, 0, 0);
        batch.zero[i] = make_uint4(0, 0, 0, 0);
        if (valid) batch.scale[i] = stream_load_scales<kKind>(w, w.scales, from);
        if (kAffine && valid) batch.zero[i] = stream_load_scales<kKind>(w, w.zeros, from);
      }
      advance(ahead);
    };
    const auto store = [&](const Batch& batch) {
      if (!has_map) mbarrier_wait(&Block::barriers().nested, 0);
      has_map = true;
      if (at.row == 0) turns.wait();
      const int row = at.row + fours.first_row;
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (i == kBatch / 2 && at.row + i * fours.step_rows >= fours.tile_rows) break;
        if (row + i * fours.step_rows >= fours.rows()) continue;
        fours.put(fours.place(turns.stage.index, row + i * fours.step_rows),
                  stream_finish_scales<kKind>(batch.scale[i], Block::nested_code(), offset),
                  kAffine ? stream_finish_scales<kKind>(batch.zero[i], nullptr, 0.0F) : float4{});
      }
      advance(at);
      if (at.row == 0) turns.finish_stage();
    };
    Batch even;
    Batch odd;
    for (bool first = true;; first = false) {
      load(even);
      if (!first) store(odd);
      if (turns.over(run, at)) break;
      load(odd);
      store(even);
      if (turns.over(run, at)) break;
    }
    turns.finish(run);
  });
}

// The same of scales that are in float32 already, by asynchronous copies.
template <class T, class Block, int kChunk>
__device__ void stream_copy_scales(const Block& block, int turn) {
  const Weight4bitView& w = block.args.weight;
  const StreamFours<T, Block, kChunk, false> fours(block);
  const int64_t row_scales = w.cols / kChunk;
  StreamTurns<Block> turns(block, turn);
  block.wait_to_read_scales();
  block.for_runs([&](const StreamRun& run) {
    for (auto at = turns.first(run); !turns.over(run, at); turns.advance(run, at)) {
      const int valid_rows = fours.rows(at.phase, at.tile);
      const float* from = static_cast<const float*>(w.scales) +
                          (run.base + block.row(at.tile) + fours.first_row) * row_scales + fours.k(at.phase) / kChunk;
      turns.wait();
#pragma unroll 4
      for (int row = fours.first_row; row < fours.rows(); row += fours.step_rows) {
        const bool valid = row < valid_rows;
        copy_async(fours.place(turns.stage.index, row), valid ? from : w.scales, valid);
        from += fours.step_rows * row_scales;
      }
      turns.finish_copied_stage();
    }
    turns.finish(run);
  });
}

// Any scales, one by one.
template <class T, class Block, int kChunk, bool kAffine>
__device__ void stream_bring_single_scales(const Block& block, int turn) {
  const Weight4bitView& w = block.args.weight;
  const StreamFours<T, Block, kChunk, kAffine> fours(block);
  StreamTurns<Block> turns(block, turn);
  block.wait_to_read_scales();
  block.for_runs([&](const StreamRun& run) {
    for (auto at = turns.first(run); !turns.over(run, at); turns.advance(run, at)) {
      turns.wait();
#pragma unroll 1
      for (int row = fours.first_row; row < fours.rows(); row += fours.step_rows) {
        float scale[4] = {};
        float zero[4] = {};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int k = fours.k(at.phase) + j * kChunk;
          if (row >= fours.rows(at.phase, at.tile) || k >= block.k_end(at.phase)) continue;
          const int64_t index = w.scale_index(run.base + block.row(at.tile) + row, k);
          scale[j] = w.scale(index);
          zero[j] = w.zero(index);
        }
        fours.put(fours.place(turns.stage.index, row), make_float4(scale[0], scale[1], scale[2], scale[3]),
                  make_float4(zero[0], zero[1], zero[2], zero[3]));
      }
      turns.finish_stage();
    }
    turns.finish(run);
  });
}

// Scales of neighbouring chunks are neighbours, and four of them are aligned, in most weights.
template <class T, class Block, int kChunk, bool kAffine>
__device__ void stream_bring_any_scales(const Block& block, int turn) {
  const Weight4bitView& w = block.args.weight;
  const bool vectors = w.block_size == kChunk && w.cols % (4 * kChunk) == 0 &&
                       reinterpret_cast<uintptr_t>(w.scales) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(w.zeros) % 16 == 0;
  if (!vectors) return stream_bring_single_scales<T, Block, kChunk, kAffine>(block, turn);
  if constexpr (kAffine) {
    if (w.scale_dtype == DType::BFloat16) {
      return stream_bring_scales<T, Block, kChunk, kAffine, StreamScales::BFloat16>(block, turn);
    }
    if (w.scale_dtype == DType::Float16) {
      return stream_bring_scales<T, Block, kChunk, kAffine, StreamScales::Float16>(block, turn);
    }
  } else if (w.nested_absmax != nullptr) {
    return stream_bring_scales<T, Block, kChunk, kAffine, StreamScales::Nested>(block, turn);
  }
  if constexpr (Block::kCopiesScales) return stream_copy_scales<T, Block, kChunk>(block, turn);
  stream_bring_scales<T, Block, kChunk, kAffine, StreamScales::Float32>(block, turn);
}

}  // namespace qbits::cuda
