#pragma once

#include <utility>

#include "cpu/isa.h"
#include "ops/int8.h"

// out is computed in tiles of up to kInt8TileN outputs for up to kInt8TileM rows of x. A tile's integer sums are exact,
// so that only the outliers' sums have an order: by lane, which depends on the number of outliers alone.
namespace qbits::cpu {

inline constexpr int64_t kInt8TileN = 32;
inline constexpr int64_t kInt8TileM = 64;

// Columns summed in 32 bits at a time, then in 64: few enough for sums with a code offset by 128, too.
inline constexpr int64_t kInt8Depth = 4096;
static_assert(kInt8Depth * 2 <= kInt8ExactDepth);

// Rows of x's codes start at multiples of this, with zeros between the last column and the next multiple.
inline constexpr int64_t kInt8RowAlignment = 64;

// Rows of codes that x is multiplied by.
struct Int8W {
  const int8_t* codes;
  int64_t stride;
  int64_t rows;
  int64_t cols;
};

// Quantized rows of x.
struct Int8X {
  const int8_t* codes;  // from -127 to 127; in igemm any
  int64_t stride;
  const int32_t* sums;  // [m, depths] of each kInt8Depth codes
  int64_t depths;
  const float* scales;
  const int32_t* columns;  // the outlier columns
  int64_t outliers;        // their number
  const float* values;     // x in these columns, rows value_stride apart, with zeros behind
  int64_t value_stride;
};

struct Int8Tile {
  int64_t m0, m1;
  int64_t n0, n1;
};

}  // namespace qbits::cpu

// What Int8X holds of rows [begin, end) besides codes and scales.
QBITS_PER_ISA(void, linear_int8_load_x, const LinearInt8Args& args, const Int8X& x, int64_t begin, int64_t end,
              int32_t* sums, float* values)

// c[m - m0, n - n0] = the product of codes, rows of c kInt8TileN apart.
QBITS_PER_ISA(void, linear_int8_products, const Int8W& w, const Int8X& x, const Int8Tile& tile, int64_t* c)

// out of one tile.
QBITS_PER_ISA(void, linear_int8_tile, const LinearInt8Args& args, const Int8X& x, const Int8Tile& tile)

namespace qbits::cpu::avx512vnni {
void linear_int8_products(const Int8W& w, const Int8X& x, const Int8Tile& tile, int64_t* c);
}
