#pragma once

#include <cstdint>

#include "ops/divisor.h"

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
  // What follows from these, as with_divisors sets it: log2 of a tile's blocks in clusters, the units that are shared,
  // and what is divided by.
  int part_shift = 0;
  int shared_units = 0;
  Divisor by_group{};   // tiles of kWgmmaGroupTiles m tiles,
  Divisor by_last{};    // and the m tiles of the last group, if they are fewer
  Divisor by_units{};   // of a tile
  Divisor by_blocks{};  // all
  Divisor by_shared{};  // units that are shared, if any

  constexpr WgmmaSchedule with_divisors() const {
    const auto divisor = [](int of) { return Divisor(of > 0 ? of : 1); };
    WgmmaSchedule s = *this;
    s.by_group = divisor(row_tiles * kWgmmaGroupTiles);
    s.by_last = divisor((m_tiles + kWgmmaGroupTiles - 1) % kWgmmaGroupTiles + 1);
    s.by_units = divisor(units);
    s.by_blocks = divisor(blocks);
    s.part_shift = splits * clusters / 2;  // of 1, 2 or 4
    s.shared_units = (m_tiles * row_tiles - whole_tiles) * units;
    s.by_shared = divisor(s.shared_units);
    return s;
  }

  // The first shared unit of a block.
  constexpr int begin(int block) const { return by_blocks.divide(shared_units * block).quotient; }

  constexpr int block_of(int unit) const { return by_shared.divide((unit + 1) * blocks - 1).quotient; }

  // The first of the blocks that share a tile. The last one adds the sums of those before it, who leave them, one share
  // each.
  constexpr int first_block(int tile) const { return block_of((tile - whole_tiles) * units); }

  // Whether other blocks, of other clusters, have a share in it.
  constexpr bool is_shared(const WgmmaSegment& s) const { return splits == 1 && s.last - s.first < units; }

  // Of a shared one: whether its block leaves its sums to another.
  constexpr bool is_left(const WgmmaSegment& s) const { return s.last < units; }

  struct Position {
    int m_tile;
    int row_tile;
  };

  constexpr Position position(int tile) const {
    if (m_tiles <= kWgmmaGroupTiles) {
      const Divisor::Result at = by_last.divide(tile);
      return {at.rest, at.quotient};
    }
    const Divisor::Result in = by_group.divide(tile);
    const int above = in.quotient * kWgmmaGroupTiles;
    if (m_tiles - above >= kWgmmaGroupTiles) return {above + in.rest % kWgmmaGroupTiles, in.rest / kWgmmaGroupTiles};
    const Divisor::Result at = by_last.divide(in.rest);
    return {above + at.rest, at.quotient};
  }
};

// Calls f(WgmmaSegment) for each part of a tile that `block` computes. What it leaves to another block comes first, and
// last what it adds others' sums to, so that it hardly ever waits for them; and if it does, for blocks before it alone,
// which run already or have. One place calls f, for kernels have its body there.
template <class F>
constexpr void for_each_segment(const WgmmaSchedule& s, int block, const F& f) {
  const int shift = s.part_shift;
  const int part = block & ((1 << shift) - 1);
  int whole = block >> shift;
  // Of the shared units, [begin, finish) are the rest of a tile that other blocks begin.
  int begin = 0;
  int finish = 0;
  int end = 0;
  if (s.shared_units > 0) {
    begin = s.begin(block);
    end = s.begin(block + 1);
    const int over = s.by_units.divide(begin).rest;
    finish = begin + (over > 0 ? s.units - over : 0);
    if (finish > end) finish = begin;
  }
  while (begin < end || whole < s.whole_tiles) {
    WgmmaSegment segment{whole, s.units * part >> shift, s.units * (part + 1) >> shift};
    if (finish < end || whole >= s.whole_tiles) {
      const int tile = s.by_units.divide(end - 1).quotient;
      const int first = tile * s.units;
      const int from = begin > first ? begin : first;
      segment = {s.whole_tiles + tile, from - first, end - first};
      end = from;
    } else {
      whole += s.blocks;
    }
    f(segment);
  }
}

}  // namespace qbits
