#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "qbits/export.h"

// The plan of the wgmma kernel of linear_4bit and of its gradient, which is the same kernel with the weight
// transposed. Pure data to data.

namespace qbits {

struct Linear4bitProblem;

// Where a weight meets its scale.
enum class WgmmaDecode : uint8_t {
  Sums,       // a fitted codebook is multiplied; sums of 64 products are scaled in float32
  Weights16,  // weights are scaled in float32 and rounded once, from a table of 16-bit fractions
  Weights32,  // the same from a table of floats
};

struct WgmmaPlan {
  int columns = 256;  // rows of x in a tile
  int groups = 2;     // computing warpgroups: the tile has 64 times as many weight rows
  WgmmaDecode decode = WgmmaDecode::Weights32;
  int multicast = 1;        // blocks of a cluster that share x
  int splits = 1;           // blocks of a cluster that share an output tile; divides columns
  int64_t split_depth = 0;  // a multiple of 128, better of 256
  int64_t blocks = 0;
  std::string obstacle = {};  // why the kernel cannot run, or ""

  bool operator==(const WgmmaPlan&) const = default;
};

// The fastest plan by a model of measured times. `transposed`: of the gradient.
QBITS_API WgmmaPlan linear_4bit_wgmma_plan(const Linear4bitProblem& problem, bool transposed);

// Every plan that computes the problem (the tests force each); none where there is an obstacle.
QBITS_API std::vector<WgmmaPlan> linear_4bit_wgmma_plans(const Linear4bitProblem& problem, bool transposed);

}  // namespace qbits
