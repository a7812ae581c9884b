#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ops/linear_4bit_ahead_plan.h"
#include "ops/linear_4bit_wgmma_plan.h"
#include "qbits/dtype.h"
#include "qbits/export.h"
#include "qbits/format.h"

// Which CUDA kernel computes a product with a 4-bit weight, and in what shape. Pure data to data, so that
// the choice is tested without a GPU (hence exported).

namespace qbits {

// out[m, cols] = a[m, depth] B with B the weight: linear_4bit (cols = N, depth = K, B = W^T) or its
// gradient for x (cols = K, depth = N, B = W).
struct Linear4bitProblem {
  Coding coding = Coding::Codebook;
  int64_t block_size = 0;  // affine: already the row length where the caller said 0
  int64_t n = 0;           // rows of the weight
  int64_t k = 0;           // its columns
  int64_t m = 0;
  int64_t experts = 0;            // of grouped_linear_4bit: weights of n rows; 0: no experts, one product
  DType dtype = DType::BFloat16;  // of x or grad
  bool nested = false;            // scales are double-quantized
  bool packs = false;             // can_pack
  bool aligned = true;            // x (or grad) and codes lie on 16-byte boundaries
  int compute_capability = 90;    // 10 * major + minor
  int sm_count = 132;

  bool operator==(const Linear4bitProblem&) const = default;
};

// Whether packed instructions in the dtype of x make weights that are rounded once (WgmmaDecode::Packed): of affine
// formats with scales and zeros of that dtype, and for bfloat16, whose exponents are float32's, of codebooks whose
// entries are bfloat16 numbers but for one factor (fp4, not nf4).
QBITS_API bool can_pack(const Format& format, DType x, DType scales);

// Shape of one tensor-core tile: what a block of 256 threads computes in one pass, and how its 8 warps share it.
struct Linear4bitTile {
  int m;
  int n;  // the output columns of a block
  int k;  // depth of one pipeline stage
  int warps_m;
  int warps_n;
  int warps_k;  // warps that share an output tile and add their sums in order
};

// linear_4bit: each warp takes 32 weight rows, 64 of depth and tile.m / warps_m columns of x.
inline constexpr int kLinear4bitTileCount = 5;
inline constexpr Linear4bitTile kLinear4bitTiles[kLinear4bitTileCount] = {
    {8, 32, 512, 1, 1, 8},   {16, 64, 256, 1, 2, 4},  {32, 64, 256, 1, 2, 4},
    {64, 128, 128, 1, 4, 2}, {128, 128, 64, 2, 4, 1},
};

// linear_4bit_grad_x: each warp takes tile.m / 2 rows of grad and 32 columns.
inline constexpr int kLinear4bitGradXTileCount = 2;
inline constexpr Linear4bitTile kLinear4bitGradXTiles[kLinear4bitGradXTileCount] = {
    {32, 128, 32, 2, 4, 1},
    {128, 128, 32, 2, 4, 1},
};

// The instructions a Mma kernel is made of. Those of sm_75 run on every later device, so that tests can force them.
enum class MmaIsa : uint8_t {
  Sm75,  // m16n8k8 of float16; stages pass through registers
  Sm80,  // m16n8k16 of float16 or bfloat16; asynchronous copies
};

// Blocks of linear_4bit an SM holds: two hide latency where registers and shared memory allow.
constexpr int mma_blocks_per_sm(MmaIsa isa, const Linear4bitTile& tile, bool affine) {
  return isa == MmaIsa::Sm80 && tile.m <= (affine ? 16 : 32) ? 2 : 1;
}

enum class Linear4bitKernel : uint8_t {
  SimtRow,   // a warp per weight row; any case; few rows of x
  SimtTile,  // 64 x 64 tiles in float32; any case
  Mma,       // mma.sync, instructions as MmaIsa says
  Stream,    // mma.sync m16n8k16; M up to 16; the weight passes by x, which stays in registers
  Wgmma,     // wgmma, weights dequantized in registers, x brought by tensor copies
  Ahead,     // wgmma, weights dequantized once, into a ring in the workspace, ahead of the product
};

struct Linear4bitPlan {
  Linear4bitKernel kernel = Linear4bitKernel::SimtTile;
  int tile = 0;             // Mma: index into the tiles above
  int chunk = 0;            // Mma forward, Stream: depth summed before a scale is applied, 32 or 64
  int stages = 0;           // Mma, Stream: depth of the shared-memory ring
  int splits = 1;           // Mma, Stream: blocks that share an output tile; Mma: > 1 needs the workspace
  int phases = 1;           // Stream: parts of K that each block takes one after the other
  int64_t split_depth = 0;  // depth of one split or phase, a multiple of the tile's k
  int64_t blocks = 0;       // thread blocks
  int column_tiles = 0;     // Stream: groups of 8 rows of x
  int warps = 0;            // Stream: of a block that multiply
  int parts = 0;            // Stream: warps that share weight rows, each with 256 of K, or 512
  int rounds = 0;           // Stream: groups of 16 * warps / parts weight rows that a block computes, in each phase
  int shared_bytes = 0;     // dynamic shared memory
  int64_t workspace_bytes = 0;
  double time = 0;            // Stream: microseconds, by the model
  WgmmaPlan wgmma = {};       // Wgmma: the rest
  AheadPlan ahead = {};       // Ahead: the rest
  MmaIsa isa = MmaIsa::Sm80;  // Mma
  std::string reason = {};    // why not a faster kernel, or what decided

  bool operator==(const Linear4bitPlan&) const = default;
};

// The plan in use, and every plan that computes the problem (the tests force each). Both throw
// Unsupported for a problem no kernel covers.
QBITS_API Linear4bitPlan linear_4bit_plan(const Linear4bitProblem& problem);
QBITS_API std::vector<Linear4bitPlan> linear_4bit_plans(const Linear4bitProblem& problem);

QBITS_API Linear4bitPlan linear_4bit_grad_x_plan(const Linear4bitProblem& problem);
QBITS_API std::vector<Linear4bitPlan> linear_4bit_grad_x_plans(const Linear4bitProblem& problem);

// One line: "mma 16x64x256, chunk 64, 4 stages, ...".
QBITS_API std::string to_string(const Linear4bitPlan& plan);

// Bytes of shared memory an SM has and a block may take (CUDA C++ Programming Guide, technical specifications).
struct SharedLimit {
  int sm;
  int block;
};
SharedLimit shared_limit(int compute_capability);

// The most pieces of at most `columns` rows into which the rows of x may be cut, each piece of one expert.
QBITS_API int64_t max_pieces(const Linear4bitProblem& problem, int64_t columns);

// As many as there are if every expert has its share of the rows: what plans are made for.
QBITS_API int64_t likely_pieces(const Linear4bitProblem& problem, int64_t columns);

// The Stream plan, if there is one; or that of wgmma's smallest tiles, from 9 rows of a product on and where sums are
// scaled, if they are faster: by the models' times, or, of experts, by their sizes.
std::optional<Linear4bitPlan> linear_4bit_few_rows_plan(const Linear4bitProblem& problem, int64_t rows);

// Plans of the kernels that compute any problem, and of the others where nothing is in their way. Mma: without splits,
// in the smallest tile for `rows` rows of x. `transposed`: of the gradient.
Linear4bitPlan linear_4bit_simt_row_plan(const Linear4bitProblem& problem);
Linear4bitPlan linear_4bit_simt_tile_plan(const Linear4bitProblem& problem, bool transposed);
Linear4bitPlan linear_4bit_mma_plan(const Linear4bitProblem& problem, int64_t rows, bool transposed);
Linear4bitPlan linear_4bit_wgmma_plan_of(const WgmmaPlan& wgmma);

void check_linear_4bit_problem(const Linear4bitProblem& problem);

// Why the tensor-core kernels, which sum runs of `run` products of one scale, cannot compute the problem, or "".
std::string linear_4bit_mma_obstacle(const Linear4bitProblem& problem, int64_t run);

// The same for the gradient's.
std::string linear_4bit_grad_x_mma_obstacle(const Linear4bitProblem& problem);

// The depth, 64 or 32, over which a row's scale holds wherever it begins.
int linear_4bit_chunk(const Linear4bitProblem& problem);

// The Stream plans of a problem without obstacle: the best, and all that tests force.
std::optional<Linear4bitPlan> linear_4bit_stream_plan(const Linear4bitProblem& problem);
QBITS_API std::vector<Linear4bitPlan> linear_4bit_stream_plans(const Linear4bitProblem& problem);

// Of a table that byte permutations address, each byte's pair, 32 times over, is a line that begins 256 bytes after the
// one before. The gaps between hold other things.
struct Linear4bitTable {
  static constexpr int kLines = 256;
  static constexpr int kLine = 128;
  static constexpr int kPitch = 256;
};

// Shared memory of the tensor-core kernels, which lay it out by the same numbers.
struct Linear4bitShared {
  static constexpr int kPairBytes = 256 * 4;  // both values of every byte of codes
  static constexpr int kNestedCodeBytes = 256 * 4;
  static constexpr int codes(const Linear4bitTile& t) { return t.n * t.k / 2; }
  static constexpr int x(const Linear4bitTile& t) { return t.m * t.k * 2; }
  static constexpr int scales(const Linear4bitTile& t, int chunk, bool affine) {
    return t.n * (t.k / chunk) * 4 * (affine ? 2 : 1);
  }
  static constexpr int stage(const Linear4bitTile& t, int chunk, bool affine) {
    return codes(t) + x(t) + scales(t, chunk, affine);
  }
  // Sums of the warps that share a tile.
  static constexpr int reduction(const Linear4bitTile& t) { return t.warps_k * t.m * t.n * 4; }

  // Sm75: the next stage waits in registers, so two are enough; the table gets as many copies as a block of compute
  // capability 7.5 then has room for.
  static constexpr int kSm75Stages = 2;
  static constexpr int kSm75Bytes = 64 * 1024;
  static constexpr int lut_copies(MmaIsa isa, const Linear4bitTile& t, int chunk, bool affine) {
    int copies = 32;
    if (isa == MmaIsa::Sm80) return copies;
    const int rest = kNestedCodeBytes + kSm75Stages * stage(t, chunk, affine);
    while (copies * kPairBytes + rest > kSm75Bytes) copies /= 2;
    return copies;
  }

  // The gradient keeps a ring of grad tiles, two dequantized weight tiles and the codebook.
  static constexpr int grad_x_stages(MmaIsa isa) { return isa == MmaIsa::Sm75 ? kSm75Stages : 3; }
  static constexpr int grad_x(const Linear4bitTile& t, int stages) {
    return stages * t.m * t.k * 2 + 2 * t.k * t.n * 2;
  }
};

}  // namespace qbits
