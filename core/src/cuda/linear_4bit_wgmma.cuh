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
  static constexpr int kComputeThreads = Shape::kComputeThreads;
  static constexpr bool kSumsScaled = Shape::kDecode == WgmmaDecode::Sums;
  static constexpr bool kTurns = Shape::kTurns;
  static constexpr int kUnits = Shape::kUnits;

  float sums[kSums];
  float products[kSumsScaled ? kSums : 1];  // of one unit
  float product_scales[2][2];               // of the two rows of a thread, of this unit and the next
  uint32_t weights[2][4][4];
  uint32_t window;
  int group;
  int lane;
  WgmmaDecoder<T, Shape> decoder;
  typename WgmmaDecoder<T, Shape>::Raw raw;  // of the unit to be decoded next

  __device__ WgmmaComputer(uint32_t window_, int group_, int warp, int lane_, bool wide_groups)
      : window(window_), group(group_), lane(lane_), decoder(window_, group_, warp, lane_, wide_groups) {
    if (kTurns && group == Shape::kGroups - 1) group_arrive(kWgmmaTurnBarrier, kWgmmaTurnThreads);
  }

  // The first turn of a tile that does not come.
  __device__ void finish() const {
    if (kTurns && group == 0) group_sync(kWgmmaTurnBarrier, kWgmmaTurnThreads);
  }

  // Begins to bring what a unit of the ring's stage is decoded from, and says where that stage lies.
  __device__ int fetch_unit(RingSlot<Shape::kStages>& ring, int i) {
    const int slot = ring.slot;
    if (i % kUnits == 0) barrier_wait(window + Layout::kFull + slot * 8, ring.parity);
    decoder.fetch(slot, i % kUnits, raw);
    if (i % kUnits == kUnits - 1) ring.advance();
    return slot;
  }

  __device__ void release_stage(int slot) const {
    if (lane == 0) barrier_arrive(window + Layout::kEmpty + slot * 8);
  }

  __device__ void decode_unit(int slot, int i) {
    decoder.decode(raw, slot, i % kUnits, weights[i % 2], product_scales[i % 2]);
  }

  __device__ void multiply_unit(int slot, int i, bool first) {
    const uint64_t tile = tile_descriptor(Layout::kX + (slot * kUnits + i % kUnits) * Layout::kXBytes);
    if constexpr (kTurns) group_sync(kWgmmaTurnBarrier + group, kWgmmaTurnThreads);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if constexpr (kSumsScaled) {
        wgmma<T>(products, weights[i % 2][k], tile + k * 2, k > 0);
      } else {
        wgmma<T>(sums, weights[i % 2][k], tile + k * 2, k > 0 || !first);
      }
    }
    wgmma_commit();
    if constexpr (kTurns) group_arrive(kWgmmaTurnBarrier + (group + 1) % Shape::kGroups, kWgmmaTurnThreads);
  }

  // Takes in the products of a unit that is done.
  __device__ void add_unit(int unit) {
    if constexpr (kSumsScaled) {
      pin(products);
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] = fmaf(product_scales[unit % 2][i / 2 % 2], products[i], sums[i]);
    }
  }

  // The sums over `stages` stages. While a unit is multiplied the next one is decoded, and what the one after it is
  // decoded from begins to come: only then do products not wait for loads. Lanes of a warp have read their part of a
  // stage when its last product is done.
  __device__ void run(RingSlot<Shape::kStages>& ring, int stages) {
    if constexpr (kSumsScaled) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] = 0.0F;
    }
    const int units = stages * kUnits;
    int slot = fetch_unit(ring, 0);
    decode_unit(slot, 0);
    int next_slot = units > 1 ? fetch_unit(ring, 1) : slot;
    int last_slot = -1;
    // Two units at a time, so that their buffers are known.
    for (int first = 0; first < units; first += 2) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (kUnits == 1 && i == 1 && first + 1 == units) break;
        const bool ends_stage = i % kUnits == kUnits - 1;
        int slot_after = next_slot;
        multiply_unit(slot, i, first + i == 0);
        if constexpr (!kSumsScaled) {
          wgmma_wait<1>();
          if (i % kUnits == 0 && last_slot >= 0) release_stage(last_slot);
          if (ends_stage) last_slot = slot;
        }
        if ((kUnits == 2 && i == 0) || first + i + 1 < units) {
          decode_unit(next_slot, i + 1);
          if (first + i + 2 < units) slot_after = fetch_unit(ring, i);
        }
        if constexpr (kSumsScaled) {
          wgmma_wait<0>();
          if (ends_stage) release_stage(slot);
          add_unit(i);
        }
        slot = next_slot;
        next_slot = slot_after;
      }
    }
    if constexpr (!kSumsScaled) {
      wgmma_wait<0>();
      release_stage(last_slot);
    }
    pin(sums);
  }
};

}  // namespace qbits::cuda
