#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ops/linear_4bit_wgmma_schedule.h"
#include "qbits/export.h"

// The plan of the wgmma kernel of linear_4bit and of its gradient, which is the same kernel with the weight
// transposed. Pure data to data.

namespace qbits {

struct Linear4bitProblem;

// Of the depth, what a stage of the kernel's ring holds: wide tiles have no room for more.
constexpr int wgmma_stage_depth(int columns) { return columns == 256 ? 64 : 128; }

// Of the warpgroups that have parts of the same sums, those that finish some: each 16 rows of x at least.
constexpr int wgmma_finishers(int columns, int parts) { return parts < columns / 16 ? parts : columns / 16; }

// At which a block fills its ring for the first time, with few columns; measured on an H200.
inline constexpr int kWgmmaFirstBytesPerClock = 18;

// Where a weight meets its scale.
enum class WgmmaDecode : uint8_t {
  Sums,     // a fitted codebook, or codes less their zero, are multiplied; sums of 64 products are scaled in float32
  Weights,  // weights are scaled in float32, from 16-bit numbers, and rounded once
  Packed,   // so are they, two at a time in x's dtype, where they are rounded once all the same (can_pack)
};

// Of the depth, how far a scale holds that the kernel keeps.
constexpr int wgmma_scale_run(WgmmaDecode decode) { return decode == WgmmaDecode::Weights ? 32 : 64; }

struct WgmmaPlan {
  int columns = 256;  // rows of x in a tile
  int groups = 2;     // the tile has 64 times as many weight rows: 1, only where splits > 1, to 3
  WgmmaDecode decode = WgmmaDecode::Weights;
  int splits = 1;    // blocks of a cluster that share its one tile; 1, 2 or 4
  int clusters = 1;  // that share a tile; 2 only where splits are 2
  int sharers = 1;   // 2: blocks of a cluster that share x, with neighbouring tiles of the weight's rows, all whole
  int64_t blocks = 0;
  int64_t whole_tiles = 0;  // computed by one block each (an odd row of tiles that share x has a next one, without
                            // outputs); the depth of the others is shared out
  int64_t shared_tiles = 0;
  int64_t workspace_bytes = 0;       // for shared tiles, or of clusters
  int64_t first = 0;                 // of the weight's rows, the first this launch takes
  std::vector<WgmmaPlan> rest = {};  // the launch of the rows after these, if any: tiles of a last wave of its own
  double time = 0;                   // microseconds, of all launches, by the model
  std::string obstacle = {};         // why the kernel cannot run, or ""

  bool operator==(const WgmmaPlan&) const = default;
};

// Which block of the plan's own launch computes what of out[m, outputs], sums over `depth`. Where blocks share x, what
// two do: their tiles are one.
QBITS_API WgmmaSchedule linear_4bit_wgmma_schedule(const WgmmaPlan& plan, int64_t m, int64_t outputs, int64_t depth);

// The fastest plan by a model of measured times. `transposed`: of the gradient.
QBITS_API WgmmaPlan linear_4bit_wgmma_plan(const Linear4bitProblem& problem, bool transposed);

// Every plan that computes the problem (the tests force each); none where there is an obstacle.
QBITS_API std::vector<WgmmaPlan> linear_4bit_wgmma_plans(const Linear4bitProblem& problem, bool transposed);

}  // namespace qbits
