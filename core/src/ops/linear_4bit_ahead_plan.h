#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "qbits/export.h"

// The plan of the kernel of linear_4bit, and of its gradient, that dequantizes ahead of a matrix product. Pure data
// to data.

namespace qbits {

struct Linear4bitProblem;

// The shape of that kernel. A unit is what is dequantized and given back at once.
struct Ahead {
  static constexpr int kBlocks = 2;          // of a cluster, which share rows of x
  static constexpr int kBlockOutputs = 128;  // weight rows (the gradient: columns) of a block's tile
  static constexpr int kStageDepth = 64;
  static constexpr int kUnitOutputs = kBlocks * kBlockOutputs;
  static constexpr int kUnitDepth = 256;
  static constexpr int kUnitStages = kUnitDepth / kStageDepth;
  static constexpr int kUnitBytes = kUnitOutputs * kUnitDepth * 2;
  // Counters in the workspace: progress of each cluster, on lines of their own since all blocks look at them often;
  // then what is ready of each unit.
  static constexpr int kProgressBytes = 128;
  static constexpr int kReadyBytes = 4;
  static constexpr int kAlignment = 1024;  // of the units
  static constexpr int kLeastSteps = 4;    // of which the ring must hold the units, or blocks wait for one another
};

struct AheadPlan {
  int columns = 256;   // rows of x in a tile
  int group = 4;       // tiles of x that walk along the weight together
  int units = 0;       // of the ring in the workspace
  int64_t blocks = 0;  // all of them run at once
  int64_t workspace_bytes = 0;
  double time = 0;            // microseconds, by the model
  std::string obstacle = {};  // why the kernel cannot run, or ""

  bool operator==(const AheadPlan&) const = default;
};

// Who computes what, and what is dequantized in which order. Clusters take one tile each, then the next wave. A tile
// is an output super row (kUnitOutputs) and `columns` rows of x. Tiles of x walk in groups: group after group, in it
// row after row, in it tile after tile. The units of a wave: for each step of depth, the rows of its tiles.
struct AheadSchedule {
  int clusters;
  int rows;    // output super rows
  int steps;   // of kUnitDepth
  int groups;  // of tiles of x
  int height;  // tiles of x in a group,
  int taller;  // the first groups have one more
  int tiles;

  constexpr AheadSchedule(int clusters_, int rows_, int steps_, int x_tiles, int group)
      : clusters(clusters_),
        rows(rows_),
        steps(steps_),
        groups(x_tiles > group ? (x_tiles + group / 2) / group : 1),
        height(x_tiles / groups),
        taller(x_tiles % groups),
        tiles(x_tiles * rows_) {}

  struct Tile {
    int line;  // group * rows + row
    int row;
    int x;
  };

  constexpr Tile tile(int i) const {
    const int taller_tiles = taller * (height + 1) * rows;
    const bool is_taller = i < taller_tiles;
    const int h = height + (is_taller ? 1 : 0);
    const int rest = is_taller ? i : i - taller_tiles;
    const int group = rest / (h * rows) + (is_taller ? 0 : taller);
    const int row = rest % (h * rows) / h;
    return {group * rows + row, row, group * height + (is_taller ? group : taller) + rest % h};
  }

  // The lines of a wave, and the number of its first unit.
  struct Wave {
    int first_tile = 0;
    int first_line = 0;
    int lines = 0;
    int first_unit = 0;
  };

  constexpr Wave wave(int first_tile, int first_unit) const {
    const int left = tiles - first_tile;
    const int first = tile(first_tile).line;
    const int last = tile(first_tile + (left < clusters ? left : clusters) - 1).line;
    return {first_tile, first, last - first + 1, first_unit};
  }

  constexpr Wave first_wave() const { return wave(0, 0); }

  // Not past the last.
  constexpr Wave next_wave(const Wave& w) const {
    return wave(w.first_tile + clusters, w.first_unit + w.lines * steps);
  }

  constexpr bool is_last(const Wave& w) const { return tiles - w.first_tile <= clusters; }

  constexpr int unit(const Wave& w, int step, int line) const {
    return w.first_unit + step * w.lines + line - w.first_line;
  }

  // No wave has more lines.
  constexpr int max_lines() const {
    const int lines = (clusters + height - 1) / height + 1;
    return lines < groups * rows ? lines : groups * rows;
  }
};

// The fastest plan by a model of measured times. `transposed`: of the gradient.
QBITS_API AheadPlan linear_4bit_ahead_plan(const Linear4bitProblem& problem, bool transposed);

// Every plan that computes the problem (the tests force each); none where there is an obstacle.
QBITS_API std::vector<AheadPlan> linear_4bit_ahead_plans(const Linear4bitProblem& problem, bool transposed);

}  // namespace qbits
