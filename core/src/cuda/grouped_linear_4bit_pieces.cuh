#pragma once

#include <cstdint>

// How the rows of x fall to experts, as the kernels of grouped_linear_4bit find out: the rows of each expert are cut
// into pieces of at most a tile's columns, and pieces are numbered from the first expert on. Offsets without sense may
// make too many of them to count in 32 bits: what comes out then is nonsense, too, but stays inside of x.

namespace qbits::cuda {

// Rows of x of one piece; none where `expert` is negative.
struct ExpertPiece {
  int expert;
  int begin;
  int end;
};

// What is known of 32 experts, one a lane.
template <int kColumns>
struct ExpertLanes {
  int begin = 0;
  int end = 0;
  uint32_t pieces = 0;
  uint32_t pieces_through = 0;  // of the experts up to the lane's own

  __device__ ExpertLanes(const int32_t* offsets, int experts, int m, int first) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (first + lane < experts) {
      begin = min(max(offsets[first + lane], 0), m);
      end = min(max(offsets[first + lane + 1], 0), m);
    }
    pieces = end > begin ? (static_cast<uint32_t>(end - begin) + kColumns - 1) / kColumns : 0;
    pieces_through = pieces;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const uint32_t before = __shfl_up_sync(~0U, pieces_through, distance);
      if (lane >= distance) pieces_through += before;
    }
  }

  __device__ uint32_t count() const { return __shfl_sync(~0U, pieces_through, 31); }
};

// Finds pieces by number, in ascending order. All lanes of a warp call it and get the same.
template <int kColumns>
class ExpertPieces {
 public:
  __device__ ExpertPieces(const int32_t* offsets, int experts, int m) : offsets_(offsets), experts_(experts), m_(m) {}

  __device__ ExpertPiece find(uint32_t piece) {
    for (; first_ < experts_; first_ += 32) {
      const ExpertLanes<kColumns> lanes(offsets_, experts_, m_, first_);
      const uint32_t count = lanes.count();
      if (piece - before_ < count) {
        const uint32_t own =
            piece - before_ - (lanes.pieces_through - lanes.pieces);  // its number in the lane's expert
        const int owner = __ffs(static_cast<int>(__ballot_sync(~0U, own < lanes.pieces))) - 1;
        if (owner < 0) break;
        const int begin = lanes.begin + static_cast<int>(own) * kColumns;
        return {first_ + owner, __shfl_sync(~0U, begin, owner),
                __shfl_sync(~0U, min(begin + kColumns, lanes.end), owner)};
      }
      before_ += count;
    }
    return {-1, 0, 0};
  }

 private:
  const int32_t* offsets_;
  int experts_;
  int m_;
  int first_ = 0;        // expert from which the search goes on
  uint32_t before_ = 0;  // pieces of those before it
};

// Number of pieces in all.
template <int kColumns>
__device__ uint32_t count_pieces(const int32_t* offsets, int experts, int m) {
  uint32_t count = 0;
  for (int first = 0; first < experts; first += 32) count += ExpertLanes<kColumns>(offsets, experts, m, first).count();
  return count;
}

}  // namespace qbits::cuda
