#pragma once

#include <bit>

#include "ops/args.h"

namespace qbits {

// Which value each quantile is, so that every device returns the same bits. Let m be the number of elements
// that are not NaN, in ascending order of quantile_key: element 0 is the smallest, -0 precedes +0.
// Quantile i asks for element k = quantile_rank(...). If m = 0 every quantile is the quiet NaN 0x7fc00000.
//
// bfloat16, float16: the value of element k itself (16 bits make one exact histogram).
//
// float32: elements are counted in buckets of equal leading 16 key bits. A bucket is heavy if
// count * kQuantileHeavy > m; a heavy one is split by the next 8 bits, heavy parts again by the last 8, after
// which they are single values. In the finest bucket that holds element k, of `count` elements, the first of
// which is element `first`, and of `width` keys from `low`:
//   key = low + (k - first) * width / count   (integer division), clamped to the smallest and largest key of x.
// So the rank is off by less than 1 / kQuantileHeavy, and a bucket spreads its elements evenly over its keys.
inline constexpr int64_t kQuantileHeavy = 400;

constexpr uint32_t quantile_key(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}
constexpr float quantile_value(uint32_t key) {
  return std::bit_cast<float>((key >> 31) != 0 ? key & 0x7fffffffU : ~key);
}
// The same for the bits of a 16-bit float.
constexpr uint32_t quantile_key16(uint16_t bits) { return (bits >> 15) != 0 ? bits ^ 0xffffU : bits | 0x8000U; }
constexpr uint16_t quantile_bits16(uint32_t key) {
  return static_cast<uint16_t>((key >> 15) != 0 ? key & 0x7fffU : key ^ 0xffffU);
}

// The step between ranks of neighbouring quantiles.
constexpr double quantile_step(double offset, int64_t num_quantiles) {
  return num_quantiles > 1 ? (1.0 - 2.0 * offset) / static_cast<double>(num_quantiles - 1) : 0.0;
}
// k for quantile `i` of m elements; all in float64, every operation rounded.
constexpr int64_t quantile_rank(double offset, double step, int64_t num_quantiles, int64_t i, int64_t m) {
  const double rank = num_quantiles > 1 ? offset + static_cast<double>(i) * step : 0.5;
  const int64_t k = static_cast<int64_t>(rank * static_cast<double>(m - 1) + 0.5);
  return k < m ? k : m - 1;
}

struct EstimateQuantilesArgs {
  const void* x;
  DType x_dtype;
  int64_t n;
  double offset;
  float* quantiles;
  int64_t num_quantiles;
  void* workspace;
  Device device;
};

namespace cpu {
int64_t estimate_quantiles_workspace(int64_t n);
void estimate_quantiles(const EstimateQuantilesArgs& args);
}  // namespace cpu
namespace cuda {
int64_t estimate_quantiles_workspace(int64_t n);
void estimate_quantiles(const EstimateQuantilesArgs& args, Stream stream);
}  // namespace cuda

}  // namespace qbits
