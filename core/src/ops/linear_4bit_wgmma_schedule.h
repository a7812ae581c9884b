#pragma once

#include <cstdint>

// Which block of the wgmma kernel computes what: whole tiles, in turn, and equal shares of the depth of the tiles that
// are left, so that no multiprocessor idles in a last wave ("Stream-K", arXiv 2301.03598). Plain arithmetic, the
// same on both sides, in 32 bits: the plan sees to it that they suffice.

namespace qbits {

inline constexpr int kWgmmaUnitDepth =
    256;                                    // tiles are shared out in units of this depth, of which scales come at once
inline constexpr int kWgmmaGroupTiles = 8;  // m tiles that walk along the rows together, for reuse in the L2

// Units [first, last) of a tile.
struct WgmmaSegment {
  int tile = 0;
  int first = 0;
  int last = 0;
};

struct WgmmaSchedule {
  int m_tiles = 0;
  int row_tiles = 0;
  int whole_tiles = 0;  // the others, at most two for each block, are shared
  int units = 0;        // of a tile
  int blocks = 0;
  int splits = 1;    // blocks of a cluster that share its one tile; > 1: no tiles are whole or shared otherwise
  int clusters = 1;  // that share a tile; > 1 only where splits are

  constexpr int shared_units() const { return (m_tiles * row_tiles - whole_tiles) * units; }

  // The first shared unit of a block.
  constexpr int begin(int block) const {
    return static_cast<int>(static_cast<uint32_t>(shared_units()) * static_cast<uint32_t>(block) /
                            static_cast<uint32_t>(blocks));
  }

  constexpr int block_of(int unit) const {
    return static_cast<int>((static_cast<uint32_t>(unit + 1) * static_cast<uint32_t>(blocks) - 1) /
                            static_cast<uint32_t>(shared_units()));
  }

  // The blocks that share a tile.
  constexpr int first_block(int tile) const { return block_of((tile - whole_tiles) * units); }
  constexpr int last_block(int tile) const { return block_of((tile - whole_tiles + 1) * units - 1); }

  // Where a block leaves its sums of a tile it shares: it has two such tiles at most, its first and its last.
  constexpr int share(int tile, int block) const {
    return 2 * block + (whole_tiles + begin(block) / units == tile ? 0 : 1);
  }

  // Whether other blocks, of other clusters, have a share in it.
  constexpr bool is_shared(const WgmmaSegment& s) const { return splits == 1 && s.last - s.first < units; }

  struct Position {
    int m_tile;
    int row_tile;
  };

  constexpr Position position(int tile) const {
    const int group = tile / (kWgmmaGroupTiles * row_tiles);
    const int rest = tile % (kWgmmaGroupTiles * row_tiles);
    const int left = m_tiles - group * kWgmmaGroupTiles;
    const int height = left < kWgmmaGroupTiles ? left : kWgmmaGroupTiles;
    return {group * kWgmmaGroupTiles + rest % height, rest / height};
  }
};

// Calls f(WgmmaSegment) for each part of a tile that `block` computes. Shared tiles come first, so that blocks hear of
// one another while they compute whole ones. One place calls f, for kernels have its body there.
template <class F>
constexpr void for_each_segment(const WgmmaSchedule& s, int block, const F& f) {
  const int parts = s.splits * s.clusters;
  const int part = block % parts;
  int whole = block / parts;
  int unit = s.begin(block);
  const int end = s.begin(block + 1);
  while (unit < end || whole < s.whole_tiles) {
    WgmmaSegment segment{whole, s.units * part / parts, s.units * (part + 1) / parts};
    if (unit < end) {
      const int tile = unit / s.units;
      const int left = end - tile * s.units;
      segment = {s.whole_tiles + tile, unit - tile * s.units, left < s.units ? left : s.units};
      unit = tile * s.units + segment.last;
    } else {
      whole += s.blocks;
    }
    f(segment);
  }
}

}  // namespace qbits
