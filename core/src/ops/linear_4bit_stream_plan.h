#pragma once

#include "ops/linear_4bit_plan.h"

// The Stream kernel of linear_4bit: the numbers by which its plan and the kernel lay shared memory out.

namespace qbits {

// A slot is what a warp reads at once: 256 columns of 16 weight rows.
struct Linear4bitStream {
  static constexpr int kMaxM = 16;
  static constexpr int kMaxWarps = 8;      // that multiply
  static constexpr int kServiceWarps = 4;  // copies, sums, and two for scales
  static constexpr int kMaxThreads = 32 * (kMaxWarps + kServiceWarps);
  // Where x fills 128 registers of a thread, of a phase and the next or all of one, those that a launch gives each of
  // 12 warps are shared out anew.
  static constexpr bool shares_registers(int column_tiles, int warp_slots, bool phased) {
    return column_tiles * warp_slots * (phased ? 2 : 1) == 4;
  }
  static constexpr int kLaunchRegisters = 168;
  // The service warps need more where there are zeros to bring, or experts to search for. The others, twice as many,
  // have what these leave.
  static constexpr int service_registers(bool affine, bool grouped) { return affine || grouped ? 88 : 56; }
  static constexpr int multiply_registers(bool affine, bool grouped) {
    return (3 * kLaunchRegisters - service_registers(affine, grouped)) / 2;
  }
  static constexpr int kSlotDepth = 256;
  static constexpr int kMaxStages = 6;
  static constexpr int kMaxPhases = 32;  // which 131,072 columns take: no model has longer rows
  static constexpr int kPhaseSlots = 2;  // of a warp: registers hold x of these twice, this phase's and the next's
  static constexpr int kFirstBytesPerClock = 18;  // at which a block fills its ring; measured on an H200
  static constexpr int kBarrierBytes = 128;
  // Pitches of a stage's rows of codes and scales, such that the rows of a fragment lie in different banks.
  static constexpr int code_pitch(int slots, int chunk) { return slots * kSlotDepth / 2 + chunk / 2; }
  static constexpr int scale_pitch(int slots, int chunk) { return 4 * (slots * kSlotDepth / chunk / 4 | 1); }
  static constexpr int scale_bytes(int slots, int groups, int chunk) {
    return groups * 16 * scale_pitch(slots, chunk) * 4;
  }
  static constexpr int stage_bytes(int slots, int groups, int chunk, bool affine) {
    const int codes = groups * 16 * code_pitch(slots, chunk);
    return scales_in_gaps(chunk, affine) ? codes : codes + scale_bytes(slots, groups, chunk) * (affine ? 2 : 1);
  }
  // Where codes are looked up; affine formats are not. The table's gaps hold the sums of warps, 8 lanes' in each, and
  // then scales, where a slot has four in a row: eight rows of a slot in each.
  static constexpr int table_bytes(bool affine) {
    return affine ? 0 : Linear4bitTable::kLines * Linear4bitTable::kPitch;
  }
  static constexpr bool scales_in_gaps(int chunk, bool affine) { return !affine && chunk * 4 == kSlotDepth; }
  static constexpr int sum_gaps(int column_tiles) { return kMaxWarps * column_tiles * 4; }
  static constexpr int scale_gaps(int slots, int groups) { return slots * groups * 2; }
  // Sums of x over the chunks of a slot, for affine formats.
  static constexpr int x_sum_bytes(int column_tiles, int chunk, bool affine) {
    return affine ? kSlotDepth / chunk * column_tiles * 32 : 0;
  }
  // Sums of 16 weight rows and the rows of x.
  static constexpr int sum_bytes(int column_tiles) { return 32 * 16 * column_tiles; }
};

// No warp has more than two slots, so a block has 16 for its groups of rows, and the gaps hold all stages.
static_assert(Linear4bitStream::sum_gaps(2) +
                  Linear4bitStream::kMaxStages * Linear4bitStream::scale_gaps(2 * Linear4bitStream::kMaxWarps, 1) <=
              Linear4bitTable::kLines);

// Of a plan: the slots that a row of a split or phase has, and how many of them a warp takes.
constexpr int stream_slots(const Linear4bitPlan& plan) {
  return static_cast<int>(plan.split_depth / Linear4bitStream::kSlotDepth);
}
constexpr int stream_warp_slots(const Linear4bitPlan& plan) {
  return (stream_slots(plan) + plan.parts - 1) / plan.parts;
}

}  // namespace qbits
