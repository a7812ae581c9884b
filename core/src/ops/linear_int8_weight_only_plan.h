#pragma once

#include <string>
#include <vector>

#include "ops/linear_4bit_plan.h"
#include "qbits/dtype.h"
#include "qbits/export.h"

// The choice among the CUDA kernels of linear_int8_weight_only: pure functions, tested without a GPU.

namespace qbits {

struct LinearInt8WeightOnlyProblem {
  int64_t n = 0;
  int64_t k = 0;
  int64_t m = 0;
  DType dtype = DType::BFloat16;
  bool aligned = true;  // x and the weight's codes lie on 16-byte boundaries
  int compute_capability = 90;
  int sm_count = 132;

  bool operator==(const LinearInt8WeightOnlyProblem&) const = default;
};

enum class LinearInt8WeightOnlyKernel : uint8_t {
  SimtRow,   // a warp for each row of the weight, for few rows of x; any problem
  SimtTile,  // tiles of 64 x 64 in float32; any problem
  Mma,       // tensor cores, for x of 16 bits
};

// What a block of the Mma kernel computes: n rows of the weight times m of x, k deep at a time. Each of its 8 warps has
// 32 rows of the weight and 64 of the depth; those that share rows of out are added in order.
struct LinearInt8WeightOnlyTile {
  int m, n, k;
  constexpr int warps_n() const { return n / 32; }
  constexpr int warps_k() const { return k / 64; }
  constexpr int stage_bytes() const { return n * k + m * k * 2; }
};
inline constexpr LinearInt8WeightOnlyTile kLinearInt8WeightOnlyTiles[] = {
    {8, 32, 512}, {16, 32, 512}, {32, 64, 256}, {64, 128, 128}};

struct LinearInt8WeightOnlyPlan {
  LinearInt8WeightOnlyKernel kernel = LinearInt8WeightOnlyKernel::SimtTile;
  MmaIsa isa = MmaIsa::Sm80;
  int tile = 0;  // of the table
  int stages = 0;
  int64_t blocks = 0;

  int64_t shared_bytes() const { return int64_t{stages} * kLinearInt8WeightOnlyTiles[tile].stage_bytes(); }
  bool operator==(const LinearInt8WeightOnlyPlan&) const = default;
};

// Rows of x and of the weight that a block of the SimtRow kernel multiplies, and of the SimtTile kernel.
inline constexpr int kLinearInt8WeightOnlyRowM = 4;
inline constexpr int kLinearInt8WeightOnlyRowN = 8;
inline constexpr int kLinearInt8WeightOnlySimtTile = 64;

// The plan in use, and every plan that computes the problem.
QBITS_API LinearInt8WeightOnlyPlan linear_int8_weight_only_plan(const LinearInt8WeightOnlyProblem& problem);
QBITS_API std::vector<LinearInt8WeightOnlyPlan> linear_int8_weight_only_plans(
    const LinearInt8WeightOnlyProblem& problem);

// One line: "mma 64x32, depth 256, 3 stages, 128 blocks".
QBITS_API std::string to_string(const LinearInt8WeightOnlyPlan& plan);

}  // namespace qbits
