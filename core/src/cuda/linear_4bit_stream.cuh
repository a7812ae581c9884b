#pragma once

#include <cstring>

#include "cuda/linear_4bit_stream_service.cuh"
#include "cuda/linear_4bit_stream_zeros.cuh"

// linear_4bit for few rows of x, bound by the memory that holds the weight. Each warp keeps its share of x in
// registers, all of it or, of long rows, a phase's after the other; 16 weight rows after the other pass by in a ring of
// shared memory that bulk copies fill. Weight rows are the 16-row operand of mma.m16n8k16; a lane of a quad takes codes
// that lie side by side, which permutes the depth of both operands alike. Scales are applied in float32 to sums of 32
// or 64 products.

namespace qbits::cuda {

// x of a slot of a phase: a lane's 16 (or twice 8) elements of each 64 of the depth, of row g of each column tile; each
// 8, where wanted, in the order of StreamAffineCodes.
template <class T, class Block, int kColumnTiles, int kChunk, bool kOrdered>
__device__ void stream_load_x(const Block& block, const StreamRun& run, int phase, int slot,
                              uint32_t (&x)[kColumnTiles][32]) {
  const StreamArgs& args = block.args;
  const int t = block.lane % 4;
#pragma unroll
  for (int ct = 0; ct < kColumnTiles; ++ct) {
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      const int column = kChunk == 64 ? v / 2 * 64 + t * 16 + v % 2 * 8 : v * 32 + t * 8;
      const int k = block.k_begin(phase) + slot * Linear4bitStream::kSlotDepth + column;
      const int m = run.m0 + ct * 8 + block.lane / 4;
      uint4 value = make_uint4(0, 0, 0, 0);
      if (m < run.m_end && k < block.k_end(phase)) {
        value = *reinterpret_cast<const uint4*>(static_cast<const T*>(args.x) + m * args.weight.cols + k);
      }
      if constexpr (kOrdered) value = StreamAffineCodes<T>::order(value);
      x[ct][4 * v] = value.x;
      x[ct][4 * v + 1] = value.y;
      x[ct][4 * v + 2] = value.z;
      x[ct][4 * v + 3] = value.w;
    }
  }
}

// Each 8 elements in the order of StreamAffineCodes.
template <class T, int kColumnTiles>
__device__ void stream_order_x(uint32_t (&x)[kColumnTiles][32]) {
#pragma unroll
  for (int ct = 0; ct < kColumnTiles; ++ct) {
#pragma unroll
    for (int i = 0; i < 32; i += 4) {
      const uint4 value = StreamAffineCodes<T>::order(make_uint4(x[ct][i], x[ct][i + 1], x[ct][i + 2], x[ct][i + 3]));
      x[ct][i] = value.x, x[ct][i + 1] = value.y, x[ct][i + 2] = value.z, x[ct][i + 3] = value.w;
    }
  }
}

template <class Block>
__device__ void stream_fill_table(const Block& block) {
  fill_table(block.args.codebook.values, block.warp * 32 + block.lane, block.args.warps * 32);
}

// Codes of a lane: its quarters of kCount chunks of row g, and of row g + 8.
template <int kChunk, int kCount>
struct StreamCodes {
  uint32_t upper[kCount][kChunk / 32];
  uint32_t lower[kCount][kChunk / 32];

  __device__ void load(const uint8_t* from, int eight_rows) {
#pragma unroll
    for (int c = 0; c < kCount; ++c, from += kChunk / 2) {
      if constexpr (kChunk == 64) {
        const uint2 a = *reinterpret_cast<const uint2*>(from);
        const uint2 b = *reinterpret_cast<const uint2*>(from + eight_rows);
        upper[c][0] = a.x, upper[c][1] = a.y, lower[c][0] = b.x, lower[c][1] = b.y;
      } else {
        upper[c][0] = *reinterpret_cast<const uint32_t*>(from);
        lower[c][0] = *reinterpret_cast<const uint32_t*>(from + eight_rows);
      }
    }
  }
};

template <class T, class Block, int kColumnTiles, int kChunk, bool kAffine>
__device__ void stream_multiply(const Block& block) {
  constexpr int kSlotChunks = Block::kSlotChunks;
  constexpr int kWarpSlots = Block::kWarpSlots;
  constexpr bool kShares = Block::kShares;
  constexpr bool kFillsLate = !kAffine && !kShares;  // the table; as registers allow
  // Chunks whose products are under way, so that none waits for one before: as registers allow.
  constexpr int kAtOnce = kShares && kChunk == 32 ? 1 : 4;
  constexpr bool kKeepsXSums = kAffine && kWarpSlots * kColumnTiles <= 2;  // as registers allow
  constexpr int kPairs = kChunk / 8;  // operand words of a row, lane and chunk; of x too
  const StreamArgs& args = block.args;
  StreamBarriers& barriers = Block::barriers();
  const int lane = block.lane;
  const int g = lane / 4;
  const int t = lane % 4;
  const int slot = block.warp % args.parts * kWarpSlots;  // the first
  const int row = block.warp / args.parts * 16 + g;

  if constexpr (Block::kIsGrouped) {
    if constexpr (!kAffine) {
      stream_fill_table(block);
      group_sync(Block::kTableBarrier, args.warps * 32);
    }
  } else {
    if (!kAffine && !(kFillsLate && args.early)) stream_fill_table(block);
    if (!args.early) wait_for_kernels_before();
    if constexpr (kColumnTiles > 1 && !Block::kTogether) group_arrive(Block::kCopyBarrier, Block::copiers(args));
    block.wait_to_read();
  }

  const uint32_t lane_table = lane_of_table(shared_address(dynamic_shared()) - kSharedBase, lane);
  // Pair i of a word's codes, as x has them.
  const auto pair_of = [&](uint32_t word, int i) {
    if constexpr (kAffine) return StreamAffineCodes<T>::pair(word, i);
    return look_up<kSharedBase>(__byte_perm(word, lane_table, byte_of_table(i)));
  };
  // Where a lane's codes of row g and its scales begin in the first stage.
  const int code_at = block.codes(0) + row * block.code_pitch + slot * (Linear4bitStream::kSlotDepth / 2) + t * kPairs;
  int scale_at[kWarpSlots];
#pragma unroll
  for (int s = 0; s < kWarpSlots; ++s) {
    scale_at[s] = Block::kScalesInGaps ? block.gap_scale(row, slot + s)
                                       : block.scales(0) + (row * block.scale_pitch + (slot + s) * kSlotChunks) * 4;
  }
  const int scale_stage = Block::kScalesInGaps ? block.gap_stage_bytes() : block.stage_bytes;
  const int eight_codes = 8 * block.code_pitch;
  const int eight_scales = Block::kScalesInGaps ? args.slots * kTablePitch : 8 * 4 * block.scale_pitch;
  float4* const own_sums = block.sums(block.warp);

  const auto load_four = [](const uint8_t* from, float (&to)[4]) {
    const float4 four = *reinterpret_cast<const float4*>(from);
    to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
  };

  StreamStage stage;
  int sums_parity = 1;  // free at first
  block.for_runs([&](const StreamRun& run) {
    using X = uint32_t[kWarpSlots][kColumnTiles][32];
    X x;
    X next;  // of the next phase, which comes while this one's products are computed
    const auto load_x = [&](int phase, X& to) {
#pragma unroll
      for (int s = 0; s < kWarpSlots; ++s) {
        if (phase == block.phases()) break;
        stream_load_x<T, Block, kColumnTiles, kChunk, kAffine && !Block::kPhased>(block, run, phase, slot + s, to[s]);
      }
    };
    [[maybe_unused]] StreamXSums<Block, kColumnTiles> x_sums[kKeepsXSums ? kWarpSlots : 1];
    const auto sum_x = [&] {
      if constexpr (kAffine) {
        __syncwarp();  // the sums before have been read
#pragma unroll
        for (int s = 0; s < kWarpSlots; ++s) stream_sum_x<T, Block, kColumnTiles, kChunk>(block, s, x[s]);
        __syncwarp();
        if constexpr (kKeepsXSums) {
#pragma unroll
          for (int s = 0; s < kWarpSlots; ++s) x_sums[s].load(block.lane_x_sums(s));
        }
      }
    };
    if constexpr (Block::kPhased) {
      load_x(0, next);
    } else {
      load_x(0, x);
      sum_x();
    }
    if constexpr (!Block::kIsGrouped && !kAffine) {
      if (kFillsLate && args.early) stream_fill_table(block);  // while x comes
      group_sync(Block::kTableBarrier, args.warps * 32);
    }
    // has_slot(s) says which slots a phase has: best a constant, for branches keep the instructions of slots apart.
    const auto multiply = [&](auto has_slot) {
      for (int tile = run.first; tile < run.last; tile += run.stride) {
        mbarrier_wait(&barriers.full[stage.index], stage.parity);
        float sums[kColumnTiles][4] = {};
#pragma unroll
        for (int s = 0; s < kWarpSlots; ++s) {
          if (!has_slot(s)) break;
          const uint8_t* const codes =
              dynamic_shared() + code_at + s * (Linear4bitStream::kSlotDepth / 2) + stage.index * block.stage_bytes;
          const uint8_t* const scales = dynamic_shared() + scale_at[s] + stage.index * scale_stage;
          [[maybe_unused]] StreamZeros<Block> zeros;
          if constexpr (kAffine) {
            zeros.load(reinterpret_cast<const float*>(scales + block.scale_bytes) + t, eight_scales / 4);
          }
          float scale[2][4];
#pragma unroll
          for (int first = 0; first < kSlotChunks; first += kAtOnce) {
            StreamCodes<kChunk, kAtOnce> some;
            some.load(codes + first * (kChunk / 2), eight_codes);
            float product[kAtOnce][kColumnTiles][4] = {};
#pragma unroll
            for (int i = 0; i < kPairs; i += 2) {
#pragma unroll
              for (int c = 0; c < kAtOnce; ++c) {
                const uint32_t upper = some.upper[c][i / 4];
                const uint32_t lower = some.lower[c][i / 4];
                const uint32_t a[4] = {pair_of(upper, i % 4), pair_of(lower, i % 4), pair_of(upper, i % 4 + 1),
                                       pair_of(lower, i % 4 + 1)};
                const int word = (first + c) * kPairs + i;
#pragma unroll
                for (int ct = 0; ct < kColumnTiles; ++ct) {
                  mma_16x8x16<T>(product[c][ct], a, x[s][ct][word], x[s][ct][word + 1]);
                }
              }
            }
            if constexpr (kAffine) {
              if (first + kAtOnce == kSlotChunks) {
                if constexpr (!kKeepsXSums) x_sums[0].load(block.lane_x_sums(s));
                zeros.subtract(x_sums[kKeepsXSums ? s : 0], sums);
              }
            }
#pragma unroll
            for (int c = 0; c < kAtOnce; ++c) {
              const int chunk = first + c;
              if (chunk % 4 == 0) {
#pragma unroll
                for (int h = 0; h < 2; ++h) load_four(scales + chunk * 4 + h * eight_scales, scale[h]);
              }
#pragma unroll
              for (int ct = 0; ct < kColumnTiles; ++ct) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                  sums[ct][i] = fmaf(scale[i / 2][chunk % 4], product[c][ct][i], sums[ct][i]);
                }
              }
            }
          }
        }
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&barriers.free[stage.index]);
        stage.next(args.stages);
        mbarrier_wait(&barriers.sums_free, sums_parity);
        sums_parity ^= 1;
#pragma unroll
        for (int ct = 0; ct < kColumnTiles; ++ct) {
          own_sums[ct * Block::kSumPitch] = make_float4(sums[ct][0], sums[ct][1], sums[ct][2], sums[ct][3]);
        }
        __syncwarp();
        if (lane == 0) mbarrier_arrive(&barriers.sums_full);
      }
    };
    const auto multiply_phase = [&](int phase) {
      const auto has_slot = [&](int s) {
        return block.k_begin(phase) + (slot + s) * Linear4bitStream::kSlotDepth < block.k_end(phase);
      };
      if constexpr (kColumnTiles * kWarpSlots == 4 && (kAffine || Block::kIsGrouped)) {
        multiply(has_slot);  // registers do not allow more
      } else if (has_slot(kWarpSlots - 1)) {
        multiply([](int) { return true; });
      } else if (kWarpSlots > 1 && has_slot(0)) {
        multiply([](int s) { return s == 0; });
      } else {
        multiply([](int) { return false; });
      }
    };
    if constexpr (!Block::kPhased) multiply_phase(0);
    for (int phase = 0; Block::kPhased && phase < args.phases; ++phase) {
      // Copied even at first: products of what loads have written would wait for all loads, the next phase's, too.
      memcpy(x, next, sizeof(X));
      if constexpr (kAffine) {
#pragma unroll
        for (int s = 0; s < kWarpSlots; ++s) stream_order_x<T>(x[s]);
      }
      sum_x();
      load_x(phase + 1, next);
      multiply_phase(phase);
    }
  });
}

// By one lane: an address that lanes differ in, or that is not a constant, takes long.
template <class Block>
__device__ void stream_init_barriers(const StreamArgs& args) {
  StreamBarriers& barriers = Block::barriers();
  if (elect_one()) {
#pragma unroll
    for (int i = 0; i < Linear4bitStream::kMaxStages; ++i) {
      mbarrier_init(&barriers.full[i], 1 + Block::kScaleArrivals);
      mbarrier_init(&barriers.free[i], args.warps);
    }
    mbarrier_init(&barriers.sums_full, args.warps);
    mbarrier_init(&barriers.sums_free, 1);
    mbarrier_init(&barriers.splits_full, 1);
    mbarrier_init(&barriers.nested, 1);
    mbarrier_init_fence();
  }
  __syncwarp();
}

template <class T, int kColumnTiles, int kChunk, bool kAffine, bool kGrouped, int kWarpSlots, bool kPhased>
__global__ void __launch_bounds__(Linear4bitStream::kMaxThreads, 1)
    linear_4bit_stream_kernel(const __grid_constant__ StreamArgs args) {
  using Block = StreamBlock<kColumnTiles, kChunk, kAffine, kGrouped, kWarpSlots, kPhased>;
  const int service = stream_warp() + Linear4bitStream::kServiceWarps;
  if (!kAffine && (shared_address(dynamic_shared()) - kSharedBase) % 0x10000 != 0) __trap();
  // Warps begin with what each can do, and wait for no more than they need.
  if (service == 0) {
    stream_init_barriers<Block>(args);
    if constexpr (!Block::kTogether) {
      group_arrive(Block::kSumsBarrier, Block::kSumsThreads);
      group_arrive(Block::kScaleBarrier, Block::kScaleThreads);
    }
  }
  if (service == 1) {
    if (args.early) drop_l1();
    if constexpr (!Block::kTogether) {
      group_arrive(Block::kReadBarrier, Block::readers(args));
      group_arrive(Block::kScaleBarrier, Block::kScaleThreads);
    }
  }
  if constexpr (kGrouped) {
    // What there is to do only offsets say, which kernels before this one may write.
    if (args.early) {
      __syncthreads();
    } else {
      prefetch_to_l2(args.offsets);
      wait_for_kernels_before();
    }
  }
  const Block block(args);
  if (service == 0) block.expect_splits();
  if (args.splits > 1) cluster_arrive();
  if constexpr (Block::kTogether) __syncthreads();
  const auto wait_for_cluster = [&] {
    __syncwarp();  // what waits is a whole warp
    if (args.splits > 1) cluster_wait();
  };
  if (block.warp < 0) {
    if constexpr (Block::kShares) give_registers<Linear4bitStream::service_registers(kAffine, kGrouped)>();
    const auto wait = [] {
      wait_for_kernels_before();
      let_next_kernel_start();
    };
    if (!args.early) wait();
    if (service == 1) {
      if constexpr (!Block::kTogether) group_sync(Block::kSumsBarrier, Block::kSumsThreads);
      stream_bring_map(block);  // once, for two copies of it cost registers
      if (args.early) wait();   // for it writes
    }
    if (service == 0) {
      if constexpr (!Block::kTogether) {
        group_arrive(Block::kReadBarrier, Block::readers(args));
        if constexpr (kColumnTiles > 1) group_sync(Block::kCopyBarrier, Block::copiers(args));  // lest codes precede x
      }
      stream_copy_codes<Block>(block);
      wait_for_cluster();
    } else if (service == 1) {
      wait_for_cluster();
      stream_take_sums<T, Block, kColumnTiles>(block);
    } else {
      stream_bring_any_scales<T, Block, kChunk, kAffine>(block, service - 2);
      wait_for_cluster();
    }
  } else {
    if constexpr (Block::kShares) take_registers<Linear4bitStream::multiply_registers(kAffine, kGrouped)>();
    // Warps past args.warps fill up the last group of four, which share out registers together.
    if (block.warp < args.warps) stream_multiply<T, Block, kColumnTiles, kChunk, kAffine>(block);
    wait_for_cluster();
  }
  if (args.splits == 1) return;
  wait_for_kernels_before();  // what has read early now writes
  stream_add_splits<T, Block, kColumnTiles>(block);
}

// Runs the instantiation of a plan; each (T, kAffine) has a file of its own.
template <class T, bool kAffine, bool kGrouped>
void launch_linear_4bit_stream(const StreamArgs& args, const Linear4bitPlan& plan, Stream stream);

#define QBITS_STREAM(T, affine, grouped) \
  extern template void launch_linear_4bit_stream<T, affine, grouped>(const StreamArgs&, const Linear4bitPlan&, Stream);
QBITS_STREAM(__nv_bfloat16, false, false)
QBITS_STREAM(__nv_bfloat16, false, true)
QBITS_STREAM(__nv_bfloat16, true, false)
QBITS_STREAM(__nv_bfloat16, true, true)
QBITS_STREAM(__half, false, false)
QBITS_STREAM(__half, false, true)
QBITS_STREAM(__half, true, false)
QBITS_STREAM(__half, true, true)
#undef QBITS_STREAM

}  // namespace qbits::cuda
