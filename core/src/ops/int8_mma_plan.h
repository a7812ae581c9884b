#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "ops/linear_4bit_plan.h"

// Tiles of the mma.sync kernels that multiply 8-bit codes, linear_int8's and igemm's: pure functions, tested without a
// GPU.

namespace qbits {

// out[m, n] = x[m, k] W^T, for each of a batch.
struct Int8MmaProblem {
  int64_t batch = 1;
  int64_t n = 0;
  int64_t k = 0;
  int64_t m = 0;
  int compute_capability = 80;  // 10 * major + minor
  int sm_count = 108;
};

struct Int8MmaPlan {
  MmaIsa isa = MmaIsa::Sm80;  // Sm75: m8n8k16, stages pass through registers; Sm80: m16n8k32, asynchronous copies
  int columns = 0;            // rows of x in a tile, which tells the rest of it
  int stages = 0;             // of the ring in shared memory
  int shared_bytes = 0;
  int64_t tiles = 0;  // and thread blocks
  double time = 0;    // the model's estimate, in clocks

  bool operator==(const Int8MmaPlan&) const = default;
};

// What the kernels are made of. A block has 8 warps, each with 32 weight rows, tile.m / warps_m rows of x and 64 codes
// of the depth of a stage.
struct Int8Mma {
  static constexpr int kWarpRows = 32;
  static constexpr int kWarpDepth = 64;
  static constexpr Linear4bitTile kTiles[] = {
      {8, 32, 512, 1, 1, 8},   {16, 32, 512, 1, 1, 8},  {32, 64, 256, 1, 2, 4},
      {64, 128, 128, 1, 4, 2}, {128, 128, 64, 2, 4, 1},
  };
  static constexpr int kSm75Stages = 2;
  static constexpr int kMaxStages = 6;
  static constexpr int kOutlierBytes = 128;  // of a row of a tile of outlier columns

  // Fragments of 16 x 8 sums: those of a warp, and those that it finishes, once all that share the depth are added.
  static constexpr int fragments(const Linear4bitTile& t) { return 2 * (t.m / t.warps_m / 8); }
  static constexpr int own_fragments(const Linear4bitTile& t) {
    return fragments(t) > t.warps_k ? fragments(t) / t.warps_k : 1;
  }
  // Warps among those that share a tile's depth that finish some.
  static constexpr int finishers(const Linear4bitTile& t) { return fragments(t) / own_fragments(t); }

  // Shared memory: the ring; after it, in the same place, sums of warps that share the depth, tiles of outliers, and
  // rows of out, one after the other, then the scales of x.
  static constexpr int stage_bytes(const Linear4bitTile& t) { return (t.m + t.n) * t.k; }
  static constexpr int exchange_bytes(const Linear4bitTile& t) {
    return t.warps_m * t.warps_n * finishers(t) * (t.warps_k - 1) * own_fragments(t) * 512;
  }
  static constexpr int outlier_bytes(const Linear4bitTile& t) { return (t.m + t.n) * kOutlierBytes; }
  // Rows of out leave in one pass, those of 4-byte elements in one for each warps_m. A pitch of 16 bytes more keeps the
  // rows of a fragment in different banks.
  static constexpr int passes(const Linear4bitTile& t, int item_bytes) { return item_bytes == 4 ? t.warps_m : 1; }
  static constexpr int slab_pitch(const Linear4bitTile& t, int item_bytes) { return t.n * item_bytes + 16; }
  static constexpr int slab_bytes(const Linear4bitTile& t, int item_bytes) {
    return t.m / passes(t, item_bytes) * slab_pitch(t, item_bytes);
  }
  static constexpr int scales_offset(const Linear4bitTile& t) {
    int most = exchange_bytes(t);
    for (const int bytes : {outlier_bytes(t), slab_bytes(t, 2), slab_bytes(t, 4)}) most = bytes > most ? bytes : most;
    return most;
  }
  static constexpr int finish_bytes(const Linear4bitTile& t) { return scales_offset(t) + t.m * 4; }
};

// The plan in use, and one of each tile and each set of instructions the device has. Unsupported, by the name of `op`,
// for more tiles than a launch has thread blocks.
QBITS_API Int8MmaPlan int8_mma_plan(std::string_view op, const Int8MmaProblem& problem);
QBITS_API std::vector<Int8MmaPlan> int8_mma_plans(const Int8MmaProblem& problem);

// "mma 128x64x128, 4 stages, 98304 B shared", weight rows, rows of x and the depth of a stage.
QBITS_API std::string to_string(const Int8MmaPlan& plan);

}  // namespace qbits
