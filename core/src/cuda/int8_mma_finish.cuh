#pragma once

#include "cuda/int8_mma.cuh"

// What becomes of sums of fragments: those of warps that share a tile's depth are added, and rows of out leave whole.

namespace qbits::cuda {

template <class Shape, class V>
using Int8OwnFragments = V[Shape::kOwnRows][Shape::kOwnColumns][4];

// Each warp's sums for the other warps that share the depth, into `memory`; then, behind a barrier of the block, what
// they left is added to the warp's own.
template <class Shape>
class Int8Exchange {
 public:
  __device__ Int8Exchange(uint8_t* memory, const Int8MmaWarp<Shape>& warp)
      : warp_(warp),
        group_(reinterpret_cast<int4*>(memory) + warp.lane +
               (warp.m * kTile.warps_n + warp.n) * (Shape::kFinishers * kOthers * Shape::kOwn * 32)) {}

  __device__ void leave(const int32_t (&sums)[2][Shape::kColumns][4]) const {
#pragma unroll
    for (int to = 0; to < Shape::kFinishers; ++to) {
      int4* const place = group_ + (to * kOthers + warp_.k - (warp_.k > to ? 1 : 0)) * (Shape::kOwn * 32);
#pragma unroll
      for (int i = 0; i < Shape::kOwn; ++i) {
        const int4 v = of(sums, to, i);
        if (to != warp_.k) place[i * 32] = v;
      }
    }
  }

  __device__ void gather(const int32_t (&sums)[2][Shape::kColumns][4], Int8OwnFragments<Shape, int32_t>& own) const {
#pragma unroll
    for (int i = 0; i < Shape::kOwn; ++i) {
      int4 sum = of(sums, 0, i);
#pragma unroll
      for (int to = 1; to < Shape::kFinishers; ++to) sum = choose(to == warp_.k, of(sums, to, i), sum);
      if (warp_.finishes()) {
        const int4* const place = group_ + (warp_.k * kOthers * Shape::kOwn + i) * 32;
#pragma unroll
        for (int other = 0; other < kOthers; ++other) {
          const int4 v = place[other * Shape::kOwn * 32];
          sum = make_int4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
        }
      }
      int32_t (&to)[4] = own[i % Shape::kOwnRows][i / Shape::kOwnRows];
      to[0] = sum.x;
      to[1] = sum.y;
      to[2] = sum.z;
      to[3] = sum.w;
    }
  }

 private:
  static constexpr Linear4bitTile kTile = Shape::kTile;
  static constexpr int kOthers = kTile.warps_k - 1;

  // Fragment i of those that warp `to` finishes: a value, since a choice among places would put them all in memory.
  static __device__ int4 of(const int32_t (&sums)[2][Shape::kColumns][4], int to, int i) {
    const int at = to * Shape::kOwn + i;
    const int32_t (&s)[4] = sums[at % 2][at / 2];
    return make_int4(s[0], s[1], s[2], s[3]);
  }
  static __device__ int4 choose(bool first, int4 a, int4 b) {
    return make_int4(first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w);
  }

  const Int8MmaWarp<Shape>& warp_;
  int4* group_;
};

// Writes the tile of out [m, n], of which the thread has value(row, column, i): element i of its own fragments. By way
// of `memory`, from which all have read what it held. `whole`: rows of out begin at 16 bytes.
template <class Shape, class T, class Value>
__device__ void write_tile(uint8_t* memory, const Int8MmaWarp<Shape>& warp, T* out, int64_t m0, int64_t m, int64_t n0,
                           int64_t n, bool whole, Value value) {
  constexpr Linear4bitTile kTile = Shape::kTile;
  constexpr int kPasses = Int8Mma::passes(kTile, sizeof(T));
  constexpr int kRows = kTile.m / kPasses;
  constexpr int kPitch = Int8Mma::slab_pitch(kTile, sizeof(T));
  constexpr int kPer = 16 / static_cast<int>(sizeof(T));
  constexpr int kPieces = kTile.n / kPer;
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    if (pass > 0) __syncthreads();
    if (warp.finishes() && (kPasses == 1 || warp.m == pass)) {
      const int first = (kPasses == 1 ? warp.m * Shape::kColumns * 8 : 0) + warp.own_column() * 8 + warp.column();
      const int column = warp.n * Int8Mma::kWarpRows + warp.own_row() * 16 + warp.row();
#pragma unroll
      for (int rt = 0; rt < Shape::kOwnRows; ++rt) {
#pragma unroll
        for (int ct = 0; ct < Shape::kOwnColumns; ++ct) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            uint8_t* const row = memory + (first + ct * 8 + i % 2) * kPitch;
            reinterpret_cast<T*>(row)[column + rt * 16 + i / 2 * 8] = value(rt, ct, i);
          }
        }
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kRows * kPieces; i += kMmaThreads) {
      const int64_t row = m0 + pass * kRows + i / kPieces;
      const int64_t column = n0 + i % kPieces * kPer;
      if (row >= m || column >= n) continue;
      const uint8_t* const from = memory + i / kPieces * kPitch + i % kPieces * 16;
      T* const to = out + row * n + column;
      if (whole) {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
      } else {
        const int count = static_cast<int>(min(n - column, int64_t{kPer}));
        for (int j = 0; j < count; ++j) to[j] = reinterpret_cast<const T*>(from)[j];
      }
    }
  }
}

}  // namespace qbits::cuda
