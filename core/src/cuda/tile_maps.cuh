#pragma once

#include <cuda.h>

#include <algorithm>
#include <cstdint>

namespace qbits::cuda {

// x by boxes of its rows, a tile each or, where two blocks share x, half of one. Rows outside a matrix take a bulk
// tensor copy three to six times as long as those inside, so no box is taller than what is there: the last one has a
// map of its own. What the tile's other rows hold is left as it was, for products of theirs are not written.
struct TileMaps {
  CUtensorMap whole;
  CUtensorMap last;
  int last_row;  // the first of the last box, if it has fewer rows than others
  int rows;      // of a box
  int last_rows;

  __device__ const CUtensorMap* map(int row) const { return row == last_row ? &last : &whole; }
  __device__ int box_rows(int row) const { return row == last_row ? last_rows : rows; }
};

// `encode` makes the map of a MatrixMap, whose box_rows are those of a box. They begin at multiples of these, or,
// where `anywhere`, at any row.
template <class Matrix, class Encode>
TileMaps encode_tiles(Matrix x, bool anywhere, const Encode& encode) {
  const int64_t box = x.box_rows;
  TileMaps maps{};
  maps.rows = x.box_rows = static_cast<int>(std::min(box, x.rows));
  maps.whole = encode(x);
  maps.last_row = -1;
  if (anywhere || x.rows <= box || x.rows % box == 0) return maps;
  maps.last_row = static_cast<int>(x.rows / box * box);
  maps.last_rows = x.box_rows = static_cast<int>(x.rows % box);
  maps.last = encode(x);
  return maps;
}

}  // namespace qbits::cuda
