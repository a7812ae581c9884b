#pragma once

#include <string>
#include <vector>

#include "ops/int8_mma_plan.h"
#include "qbits/dtype.h"
#include "qbits/export.h"

// The choice among the CUDA kernels of linear_int8: pure functions, tested without a GPU.

namespace qbits {

struct LinearInt8Problem {
  int64_t n = 0;
  int64_t k = 0;
  int64_t m = 0;
  DType dtype = DType::BFloat16;
  bool outliers = false;  // there is a threshold
  bool aligned = true;    // weight codes and out lie on 16-byte boundaries
  bool x_aligned = true;  // x on 4-byte boundaries
  int compute_capability = 90;
  int sm_count = 132;

  bool operator==(const LinearInt8Problem&) const = default;
};

enum class LinearInt8Kernel : uint8_t {
  Simt,   // dot products of four codes, for any problem and device
  Mma,    // mma.sync: any size and alignment whose sums fit 32 bits
  Wgmma,  // Hopper's tensor cores: tiles of 64 or 128 weight rows
};

struct LinearInt8Plan {
  LinearInt8Kernel kernel = LinearInt8Kernel::Simt;
  int rows = 0;        // wgmma: of the weight, in a tile
  int columns = 64;    // rows of x in a tile
  int splits = 1;      // thread blocks, a cluster, that share a tile's depth
  bool lists = false;  // wgmma with outliers: blocks list their columns, by what the quantizer has marked
  int64_t tiles = 0;
  int64_t blocks = 0;
  double time = 0;       // wgmma: the model's estimate, in clocks
  Int8MmaPlan mma = {};  // Mma: the rest

  bool operator==(const LinearInt8Plan&) const = default;
};

// What the wgmma kernel is made of.
struct LinearInt8Wgmma {
  static constexpr int kDepth = 128;   // of a stage: bytes, one swizzle line
  static constexpr int kRows = 128;    // of the weight, in a tile
  static constexpr int kFewRows = 64;  // of a weight too small for those to keep all multiprocessors busy
  // What takes few rows of x, in narrow tiles: so few weight rows, whose depth the warpgroups share, and blocks that
  // list outlier columns, with a bit of shared memory for each column.
  static constexpr int kFewColumns = 64;
  static constexpr int kMostFew = 128;
  static constexpr int kMostListed = 512;
  static constexpr int kListedDepth = 32768;
  static constexpr int kColumns[] = {16, 32, 64, 128, 256};
  static constexpr int kSplits[] = {1, 2, 4, 8};
  // Whether blocks go from tile to tile: not where a tile's sums alone take half of all registers, nor where what
  // warpgroups and lists leave in shared memory is for one tile.
  static constexpr bool goes_on(int rows, int columns, bool lists) { return rows == kRows && columns < 256 && !lists; }
  static constexpr int stage_bytes(int rows, int columns) { return (rows + columns) * kDepth; }
};

// Codes of x are kept in rows of this many bytes, so that they begin at 16 bytes.
constexpr int64_t linear_int8_pitch(int64_t k) { return (k + 15) / 16 * 16; }

// The plan in use, and every plan that computes the problem.
QBITS_API LinearInt8Plan linear_int8_plan(const LinearInt8Problem& problem);
QBITS_API std::vector<LinearInt8Plan> linear_int8_plans(const LinearInt8Problem& problem);

// One line: "wgmma 128x64, 2 splits, 128 blocks", "wgmma 64x16, 1 split, 64 blocks, lists outliers",
// "mma 128x64x128, 4 stages, 98304 B shared, 32 blocks".
QBITS_API std::string to_string(const LinearInt8Plan& plan);

}  // namespace qbits
