#pragma once

#include "cuda/linear_4bit_wgmma_parts.cuh"

namespace qbits::cuda {

// Of the loading warpgroup, the warp that has x and codes copied, by one lane; all go along, for addresses that the
// compiler knows to be the warp's take half the instructions.
template <class T, class Shape>
struct WgmmaLoader {
  using Layout = WgmmaLayout<Shape>;
  using Ring = RingPlace<Shape::kCodeStages, Shape::kStages, Shape::kCodesApart>;
  static constexpr int kStepN = Shape::kTransposed ? Shape::kStageDepth : 0;  // from stage to stage
  static constexpr int kStepK = Shape::kTransposed ? 0 : Shape::kStageDepth;

  const WgmmaArgs& args;
  uint32_t window;
  bool elected;

  // The first stages of the weight from element (n, k) on: whole lines of the L2.
  __device__ void prefetch_codes(int n, int k) const {
    constexpr int kCount = Shape::kTransposed ? 1 : 256 / Shape::kStageDepth;
#pragma unroll
    for (int i = 0; i < kCount; ++i) prefetch_box(&args.codes, (k + i * kStepK) / 2, n + i * kStepN);
  }

  // Of x from row m0 and column `begin` on, of the weight from element (n, k) on. Codes that are apart lead. `first`:
  // the ring has not been filled before. `waits`: for barriers.
  __device__ void load_stages(Ring& ring, int m0, int begin, int n, int k, int stages, bool first, bool waits) const {
    constexpr int kLead = Shape::kCodeStages - Shape::kStages;
    const bool shares_x = Shape::kMayShareX && args.sharers > 1;
    const int share = shares_x ? static_cast<int>(cluster_rank()) * (Shape::kColumns / 2) : 0;
    const int row = m0 + share;
    const CUtensorMap* const x = args.x.map(row);
    int x_rows = args.x.box_rows(m0);
    if (shares_x && m0 + Shape::kColumns / 2 < args.m) x_rows += args.x.box_rows(m0 + Shape::kColumns / 2);
    const int stage_x_bytes = x_rows * (Shape::kStageSteps * kWgmmaStepDepth * 2);
    // Copies that every block starts at once come in together, late: where products wait for codes most, those of the
    // first ring are given time to arrive.
    constexpr bool kSpaced = Shape::kColumns <= 64 && Shape::kRowGroups > 1;
    constexpr int kStageClocks = Layout::kCodeBytes / kWgmmaFirstBytesPerClock;
    __syncwarp();
    if (waits) group_sync(kWgmmaFirstBarrier, kWgmmaPairThreads);
    const uint32_t start = kSpaced ? static_cast<uint32_t>(clock()) : 0;
    for (int stage = -kLead; stage < stages; ++stage) {
      if (kSpaced && first && stage > 0 && stage < Shape::kCodeStages) {
        while (static_cast<uint32_t>(clock()) - start < static_cast<uint32_t>(stage * kStageClocks)) {
        }
      }
      const int ahead = stage + kLead;
      const int slot = ring.codes.slot;
      const uint32_t codes_full = window + Layout::kFull + slot * 8;
      if (ahead < stages) {
        barrier_wait(window + Layout::kEmpty + slot * 8, ring.codes.parity ^ 1);
        if (elected) {
          barrier_arrive_expecting(codes_full, Layout::kCodeBytes + (Shape::kCodesApart ? 0 : stage_x_bytes));
          copy_box(window + Layout::kCodes + slot * Layout::kCodeBytes, &args.codes, (k + ahead * kStepK) / 2,
                   n + ahead * kStepN, codes_full, args.code_policy);
        }
        if constexpr (Shape::kCodesApart) ring.codes.advance();
      }
      if (Shape::kCodesApart && stage < 0) continue;
      const int x_slot = ring.x().slot;
      const uint32_t full = window + Layout::kXFull + x_slot * 8;
      if constexpr (Shape::kCodesApart) {
        barrier_wait(window + Layout::kXEmpty + x_slot * 8, ring.x().parity ^ 1);
        if (elected) barrier_arrive_expecting(full, stage_x_bytes);
      }
#pragma unroll
      for (int step = 0; elected && step < Shape::kStageSteps; ++step) {
        const uint32_t to = window + Layout::kX + (x_slot * Shape::kStageSteps + step) * Layout::kXBytes;
        const int column = begin + (stage * Shape::kStageSteps + step) * kWgmmaStepDepth;
        if (!shares_x) {
          copy_box(to, x, column, m0, full);
        } else if (row < args.m) {
          copy_box_multicast(to + share * (kWgmmaStepDepth * 2), x, column, row, full, 0b11);
        }
      }
      if constexpr (Shape::kCodesApart) {
        ring.x_apart.advance();
      } else {
        ring.codes.advance();
      }
    }
  }
};

}  // namespace qbits::cuda
