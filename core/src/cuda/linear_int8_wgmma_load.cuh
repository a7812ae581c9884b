#pragma once

#include "cuda/linear_int8_wgmma_parts.cuh"

// How stages of codes come into the ring of the wgmma kernel of linear_int8.

namespace qbits::cuda {

// A stage of x's codes, into a slot of the ring.
template <class Shape>
__device__ void bring_x(const Int8WgmmaArgs& args, uint32_t window, const Int8Tile& tile, int stage, int slot) {
  copy_box(window + slot * Shape::kStageBytes + Shape::kWeightBytes, args.x.map(tile.m0),
           stage * LinearInt8Wgmma::kDepth, tile.m0, window + Shape::kFull + slot * 8);
}

// The stages of x that belong to the first of the weight.
template <class Shape>
__device__ void bring_first_x(const Int8WgmmaArgs& args, uint32_t window) {
  wait_for_kernels_before();
  const Int8Tile tile = first_tile<Shape>(args);
  const int count = min(tile.end - tile.begin, Shape::kStages);
  for (int i = 0; i < count; ++i) bring_x<Shape>(args, window, tile, tile.begin + i, i);
}

// One thread brings all other stages. The first of the weight need not wait: the quantizer, which alone may still run,
// writes none of it. They are asked for no faster than memory delivers, for what the quantizer loads would queue
// behind.
template <class Shape>
__device__ void bring_stages(const Int8WgmmaArgs& args, uint32_t window) {
  const auto bring_weight = [&](const Int8Tile& tile, int stage, int slot) {
    const uint32_t full = window + Shape::kFull + slot * 8;
    barrier_arrive_expecting(full, Shape::kWeightBytes + args.x.box_rows(tile.m0) * LinearInt8Wgmma::kDepth);
    copy_box(window + slot * Shape::kStageBytes, &args.weight, stage * LinearInt8Wgmma::kDepth, tile.n0, full);
  };
  bool first = true;
  Int8Slot<Shape> slot{.parity = 1};  // all are free
  for_tiles<Shape>(args, [&](const Int8Tile& tile) {
    int stage = tile.begin;
    if (first) {
      const int count = min(tile.end - tile.begin, Shape::kStages);
      const auto begin = clock64();
      for (int i = 0; i < count; ++i) {
        while (clock64() - begin < (i - args.burst) * args.pace) {
        }
        bring_weight(tile, stage + i, i);
        slot.next();
      }
      wait_for_kernels_before();
      stage += count;
    }
    for (; stage < tile.end; ++stage) {
      barrier_wait(window + Shape::kEmpty + slot.index * 8, slot.parity);
      bring_weight(tile, stage, slot.index);
      bring_x<Shape>(args, window, tile, stage, slot.index);
      slot.next();
    }
    if constexpr (Shape::kPicks) {
      if (cluster_rank() == 0) {
        const uint32_t full = window + Shape::kOutlierXFull;
        if (!first) barrier_wait(window + Shape::kOutliersUsed, tile.parity ^ 1);
        barrier_arrive_expecting(full, Shape::kColumns * 128);
        copy_box(window + Shape::kOutlierX, &args.outliers, 0, tile.m0, full);
      }
    }
    first = false;
  });
}

}  // namespace qbits::cuda
