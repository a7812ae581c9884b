#pragma once

#include "cuda/linear_4bit_wgmma_decode.cuh"
#include "cuda/linear_4bit_wgmma_load.cuh"
#include "cuda/linear_4bit_wgmma_scales.cuh"

// linear_4bit on Hopper, as out^T = W x^T: 64 weight rows are wgmma's operand in registers, dequantized there, and
// rows of x, brought by bulk tensor copies, its operand in shared memory. The gradient for x is the same with W^T and
// rows of grad. Blocks stay and take tile after tile. One warpgroup loads; two compute, each decoding its next
// weights while the tensor cores work on the last. Codes lie in shared memory as they do in the checkpoint.

namespace qbits::cuda {

template <class T, class Shape>
using WgmmaDecoder = std::conditional_t<Shape::kTransposed, WgmmaColumnDecoder<T, Shape>, WgmmaRowDecoder<T, Shape>>;

// A computing warpgroup's sums and the weights in flight. It goes by steps of 64 of the depth, unit by unit, which
// lie in the ring where constants say, but for the unit's place.
template <class T, class Shape>
struct WgmmaComputer {
  using Layout = WgmmaLayout<Shape>;
  using Ring = RingPlace<Shape::kCodeUnits, Shape::kUnits, Shape::kCodesApart>;
  static constexpr int kSums = Shape::kColumns / 2;
  static constexpr bool kSumsScaled = Shape::kDecode == WgmmaDecode::Sums;
  static constexpr bool kTurns = Shape::kTurns;
  static constexpr int kStageSteps = Shape::kStageSteps;
  static constexpr int kGroupStages = Shape::kUnitStages / Shape::kDepthGroups;  // of a unit, for this warpgroup
  static constexpr int kSteps = kGroupStages * kStageSteps;

  float sums[kSums];
  float products[kSumsScaled ? kSums : 1];  // of one step
  float product_scales[2][2];               // of the two rows of a thread, of this step and the next
  uint32_t weights[2][4][4];
  uint32_t window;
  int group;
  int first_stage;  // of a unit, for this warpgroup
  int lane;
  uint32_t x_empty;  // where x is shared: of the block that this lane tells of a stage that is read, in the cluster
  bool tells;
  WgmmaDecoder<T, Shape> decoder;
  typename WgmmaDecoder<T, Shape>::Raw raw;  // of the step to be decoded next

  __device__ WgmmaComputer(uint32_t window_, int group_, int warp, int lane_, const WgmmaArgs& args)
      : window(window_),
        group(group_),
        first_stage(group_ / Shape::kRowGroups * kGroupStages),
        lane(lane_),
        x_empty(cluster_address(window_ + Layout::kXEmpty, args.sharers > 1 ? lane_ % 2 : cluster_rank())),
        tells(lane_ < args.sharers),
        decoder(window_, group_ % Shape::kRowGroups, warp, lane_, args.wide_groups) {
    if (kTurns && group == Shape::kGroups - 1) group_arrive(kWgmmaTurnBarrier, kWgmmaTurnThreads);
  }

  // The first turn of a tile that does not come.
  __device__ void finish() const {
    if (kTurns && group == 0) group_sync(kWgmmaTurnBarrier, kWgmmaTurnThreads);
  }

  template <int kUnits>
  __device__ int stage_of(const RingSlot<kUnits>& ring, int step) const {
    return ring.slot * Shape::kUnitStages + first_stage + step / kStageSteps;
  }

  // Begins to bring what a step is decoded from. Where none comes, anything: to branch would cost moves of registers
  // each time (to decode it would cost more, once a tile).
  __device__ void fetch(const Ring& ring, int step, bool comes = true) {
    const int stage = stage_of(ring.codes, step);
    if (step % kStageSteps == 0 && comes) barrier_wait(window + Layout::kFull + stage * 8, ring.codes.parity);
    decoder.fetch(stage, step % kStageSteps, raw);
  }

  // The stage of the step is read: of x, and of codes where they are not apart.
  __device__ void release(const Ring& ring, int step) const {
    const int at = stage_of(ring.x(), step) * 8;
    if constexpr (Shape::kMayShareX) {
      if (tells) barrier_arrive_cluster(x_empty + at);
    } else {
      if (lane == 0) barrier_arrive(window + Layout::kXEmpty + at);
    }
  }
  __device__ void release_codes(const Ring& ring, int step) const {
    if (lane == 0) barrier_arrive(window + Layout::kEmpty + stage_of(ring.codes, step) * 8);
  }

  template <bool kSecond>
  __device__ void decode(const Ring& ring, int step) {
    decoder.template decode<kSecond>(raw, stage_of(ring.codes, step), step % kStageSteps, weights[step % 2],
                                     product_scales[step % 2]);
  }

  __device__ void multiply(const Ring& ring, int step) {
    const uint64_t tile = tile_descriptor(window + Layout::kX + stage_of(ring.x(), 0) * kStageSteps * Layout::kXBytes) +
                          step * Layout::kXBytes / 16;
    if (Shape::kCodesApart && step % kStageSteps == 0) {
      barrier_wait(window + Layout::kXFull + stage_of(ring.x(), step) * 8, ring.x().parity);
    }
    if constexpr (kTurns) group_sync(kWgmmaTurnBarrier + group, kWgmmaTurnThreads);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if constexpr (kSumsScaled) {
        wgmma<T>(products, weights[step % 2][k], tile + k * 2, k > 0);
      } else {
        wgmma<T>(sums, weights[step % 2][k], tile + k * 2, 1);
      }
    }
    wgmma_commit();
    if constexpr (kTurns) group_arrive(kWgmmaTurnBarrier + (group + 1) % Shape::kGroups, kWgmmaTurnThreads);
  }

  // Takes in the products of a step that is done.
  __device__ void add(int step) {
    if constexpr (kSumsScaled) {
      pin(products);
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] = fmaf(product_scales[step % 2][i / 2 % 2], products[i], sums[i]);
    }
  }

  // The sums over `units` units. While a step is multiplied the next one is decoded, and what the one after it is
  // decoded from begins to come: only then do products not wait for loads. Lanes of a warp have read their part of a
  // stage when its last product is done. kSecond: affine zeros are of two parts.
  template <bool kSecond>
  __device__ void run(Ring& ring, int units) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = 0.0F;
    fetch(ring, 0);
    decode<kSecond>(ring, 0);
    fetch(ring, 1);
    Ring last = ring;
    for (int unit = 0; unit < units; ++unit) {
      const Ring here = ring;
      const bool more = unit + 1 < units;
      ring.advance();
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        multiply(here, step);
        if constexpr (!kSumsScaled) {
          wgmma_wait<1>();
          if (step > 0 && step % kStageSteps == 0) release(here, step - 1);
          if (step == 0 && unit > 0) release(last, kSteps - 1);
          if (Shape::kCodesApart && (step + 1) % kStageSteps == 0) release_codes(here, step);
        }
        if (step + 1 < kSteps) {
          decode<kSecond>(here, step + 1);
        } else if (more) {
          decode<kSecond>(ring, 0);
        }
        if (step + 2 < kSteps) {
          fetch(here, step + 2);
        } else {
          fetch(ring, step + 2 - kSteps, more);
        }
        if constexpr (kSumsScaled) {
          wgmma_wait<0>();
          if ((step + 1) % kStageSteps == 0) release(here, step);
          add(step);
        }
      }
      last = here;
    }
    if constexpr (!kSumsScaled) {
      wgmma_wait<0>();
      release(last, kSteps - 1);
    }
    pin(sums);
  }
};

}  // namespace qbits::cuda
