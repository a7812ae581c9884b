#pragma once

#include "cuda/linear_4bit_wgmma_decode.cuh"
#include "cuda/linear_4bit_wgmma_load.cuh"

// linear_4bit on Hopper, as out^T = W x^T: 64 weight rows are wgmma's operand in registers, dequantized there, and
// rows of x, brought by bulk tensor copies, its operand in shared memory. The gradient for x is the same with W^T and
// rows of grad. Blocks stay and take tile after tile. One warpgroup loads; two compute, each decoding its next
// weights while the tensor cores work on the last. Codes lie in shared memory as they do in the checkpoint.

namespace qbits::cuda {

template <class T, class Shape>
using WgmmaDecoder = std::conditional_t<Shape::kTransposed, WgmmaColumnDecoder<T, Shape>, WgmmaRowDecoder<T, Shape>>;

// A computing warpgroup's sums and the weights in flight.
template <class T, class Shape>
struct WgmmaComputer {
  using Layout = WgmmaLayout<Shape>;
  static constexpr int kSums = Shape::kColumns / 2;
  static constexpr bool kSumsScaled = Shape::kDecode == WgmmaDecode::Sums;
  static constexpr bool kTurns = Shape::kTurns;
  static constexpr int kBuffers = Shape::kGroups == 2 ? 2 : 1;
  static constexpr int kUnits = 2;  // of a stage: 64 of depth each

  float sums[kSums];
  float products[kSumsScaled ? kSums : 1];  // of one unit
  float product_scales[kBuffers][2];        // of the two rows of a thread
  uint32_t weights[kBuffers][4][4];
  uint32_t window;
  int group;
  int lane;
  WgmmaDecoder<T, Shape> decoder;

  __device__ WgmmaComputer(uint32_t window_, int group_, int warp, int lane_, bool wide_groups)
      : window(window_), group(group_), lane(lane_), decoder(window_, group_, warp, lane_, wide_groups) {
    if (kTurns && group == 1) group_arrive(kWgmmaTurnBarrier, Shape::kComputeThreads);
  }

  // The first turn of a tile that does not come.
  __device__ void finish() const {
    if (kTurns && group == 0) group_sync(kWgmmaTurnBarrier, Shape::kComputeThreads);
  }

  // Half of a unit; waits for its stage at the beginning of one and gives it back at the end.
  __device__ void decode_half(RingSlot<Shape::kCodeStages>& codes, int unit, int half) {
    if (unit == 0 && half == 0) barrier_wait(window + Layout::kCodesFull + codes.slot * 8, codes.parity);
    decoder.decode_half(codes.slot, unit, half, weights[unit % kBuffers], product_scales[unit % kBuffers]);
    if (unit == kUnits - 1 && half == 1) {
      __syncwarp();
      if (lane == 0) barrier_arrive(window + Layout::kCodesEmpty + codes.slot * 8);
      codes.advance();
    }
  }

  __device__ void decode_unit(RingSlot<Shape::kCodeStages>& codes, int unit) {
    decode_half(codes, unit, 0);
    decode_half(codes, unit, 1);
  }

  __device__ void multiply_unit(int slot, int unit, bool first) {
    const uint64_t tile = tile_descriptor(Layout::kX + slot * Layout::kXBytes);
    if constexpr (kTurns) group_sync(kWgmmaTurnBarrier + group, Shape::kComputeThreads);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if constexpr (kSumsScaled) {
        wgmma<T>(products, weights[unit % kBuffers][k], tile + k * 2, k > 0);
      } else {
        wgmma<T>(sums, weights[unit % kBuffers][k], tile + k * 2, k > 0 || !first);
      }
    }
    wgmma_commit();
    if constexpr (kTurns) group_arrive(kWgmmaTurnBarrier + (group ^ 1), Shape::kComputeThreads);
  }

  // Takes in the products of a unit that is done.
  __device__ void add_unit(int unit) {
    if constexpr (kSumsScaled) {
      pin(products);
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] = fmaf(product_scales[unit % kBuffers][i / 2 % 2], products[i], sums[i]);
    }
  }

  __device__ void release_x(int slot, int multicast, uint32_t first_peer) const {
    if (lane < multicast) barrier_arrive_cluster(window + Layout::kXEmpty + slot * 8, first_peer + lane);
  }

  // The sums over `stages` stages.
  __device__ void run(RingSlot<Shape::kXStages>& x, RingSlot<Shape::kCodeStages>& codes, int stages, int multicast,
                      uint32_t first_peer) {
    if constexpr (kSumsScaled) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] = 0.0F;
    }
    if constexpr (kBuffers == 2) decode_unit(codes, 0);
    int last_slot = -1;
    for (int stage = 0; stage < stages; ++stage) {
#pragma unroll
      for (int unit = 0; unit < kUnits; ++unit) {
        const bool first = stage == 0 && unit == 0;
        const bool more = unit + 1 < kUnits || stage + 1 < stages;
        const int next = (unit + 1) % kUnits;
        if constexpr (kBuffers == 1) decode_unit(codes, unit);
        barrier_wait(window + Layout::kXFull + x.slot * 8, x.parity);
        multiply_unit(x.slot, unit, first);
        if constexpr (kBuffers == 1 || kSumsScaled) {
          if (kBuffers == 2 && more) decode_unit(codes, next);
          wgmma_wait<0>();
          release_x(x.slot, multicast, first_peer);
          add_unit(unit);
        } else {
          wgmma_wait<1>();
          if (last_slot >= 0) release_x(last_slot, multicast, first_peer);
          last_slot = x.slot;
          if (more) decode_unit(codes, next);
        }
        x.advance();
      }
    }
    if constexpr (kBuffers == 2 && !kSumsScaled) {
      wgmma_wait<0>();
      release_x(last_slot, multicast, first_peer);
    }
    pin(sums);
  }
};

}  // namespace qbits::cuda
