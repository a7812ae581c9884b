#pragma once

#include "cuda/int8_mma_finish.cuh"

// Products of outlier columns of x with the weight's codes, added to float32 sums. 128 bytes of such columns at a time,
// of all rows of a tile, come to shared memory as numbers of x's type, in which codes are exact; from there they are
// multiplied by tensor cores, sixteen columns at a time (eight on sm_75), where these know the type, else one by one.

namespace qbits::cuda {

struct Int8Outliers {
  const void* x;           // [m, k]
  const int32_t* columns;  // ascending
  const int32_t* count;    // null: there are none
};

template <class T>
using BitsOf = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;

template <class T>
__device__ BitsOf<T> number_bits(int8_t code) {
  if constexpr (sizeof(T) == 4) {
    return __float_as_uint(static_cast<float>(code));
  } else {
    return static_cast<uint16_t>(pack<T>(static_cast<float>(code), 0.0F));
  }
}
template <class T>
__device__ BitsOf<T> number_bits(BitsOf<T> bits) {
  return bits;
}

template <class T, class Shape>
struct OutlierTile {
  static constexpr int kPer = 16 / static_cast<int>(sizeof(T));  // columns of a chunk
  static constexpr int kChunks = Int8Mma::kOutlierBytes / 16;    // of a row
  static constexpr int kColumns = kPer * kChunks;                // at a time
  static constexpr int kStep = Int8Mma::kWarpDepth / 2;          // columns of two 16-bit mma
  static constexpr bool kTensorCores =
      std::is_same_v<T, __half> || (std::is_same_v<T, __nv_bfloat16> && Shape::kIsa == MmaIsa::Sm80);
  static constexpr int kXOffset = Shape::kTile.n * Int8Mma::kOutlierBytes;
};

// Outlier columns first, first + 1 and on, of `rows` rows of a matrix from `row0` on; 0 where there is none, up to a
// multiple of what is multiplied at once.
template <class T, class Shape, class Element>
__device__ void gather_outlier_rows(uint8_t* tile, const Element* matrix, int64_t row0, int64_t row_end, int64_t pitch,
                                    int rows, const int32_t* columns, int left) {
  using Tile = OutlierTile<T, Shape>;
  const int chunks = Tile::kTensorCores ? (min(left, Tile::kColumns) + Tile::kStep - 1) / Tile::kStep * 4
                                        : (min(left, Tile::kColumns) + Tile::kPer - 1) / Tile::kPer;
  for (int i = static_cast<int>(threadIdx.x); i < rows * chunks; i += kMmaThreads) {
    const int row = i / chunks;
    const int chunk = i % chunks;
    BitsOf<T> bits[Tile::kPer];
#pragma unroll
    for (int j = 0; j < Tile::kPer; ++j) {
      const int c = chunk * Tile::kPer + j;
      const bool valid = row0 + row < row_end && c < left;
      bits[j] = valid ? number_bits<T>(matrix[(row0 + row) * pitch + columns[c]]) : BitsOf<T>{0};
    }
    uint32_t words[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if constexpr (sizeof(T) == 4) {
        words[w] = bits[w];
      } else {
        words[w] = bits[w * 2] | uint32_t{bits[w * 2 + 1]} << 16;
      }
    }
    *reinterpret_cast<uint4*>(tile + row * Int8Mma::kOutlierBytes + swizzle_rows<Tile::kChunks>(row, chunk) * 16) =
        make_uint4(words[0], words[1], words[2], words[3]);
  }
}

template <class T, class Shape>
__device__ float outlier_at(const uint8_t* tile, int row, int c) {
  using Tile = OutlierTile<T, Shape>;
  const int place =
      swizzle_rows<Tile::kChunks>(row, c / Tile::kPer) * 16 + c % Tile::kPer * static_cast<int>(sizeof(T));
  return to_float(*reinterpret_cast<const T*>(tile + row * Int8Mma::kOutlierBytes + place));
}

// Adds the products to the warp's own fragments. All threads of the block take part; what `memory` held is done with
// once all have come here.
template <class T, class Shape>
__device__ void add_outliers(const Int8Outliers& outliers, const Int8MmaOperands& args, int64_t m0, int64_t n0,
                             const Int8MmaWarp<Shape>& warp, uint8_t* memory, Int8OwnFragments<Shape, float>& sums) {
  using Tile = OutlierTile<T, Shape>;
  const int count = outliers.count != nullptr ? *outliers.count : 0;
  const int row0 = warp.n * Int8Mma::kWarpRows + warp.own_row() * 16;
  const int column0 = (warp.m * Shape::kColumns + warp.own_column()) * 8;
  for (int first = 0; first < count; first += Tile::kColumns) {
    const int left = count - first;
    __syncthreads();
    gather_outlier_rows<T, Shape>(memory, args.weight, n0, args.n, args.weight_pitch, Shape::kTile.n,
                                  outliers.columns + first, left);
    gather_outlier_rows<T, Shape>(memory + Tile::kXOffset, static_cast<const BitsOf<T>*>(outliers.x), m0, args.m,
                                  args.k, Shape::kTile.m, outliers.columns + first, left);
    __syncthreads();
    if (!warp.finishes()) continue;
    const int columns = min(left, Tile::kColumns);
    if constexpr (Tile::kTensorCores) {
      const uint32_t weight = shared_address(memory);
      const uint32_t x = weight + Tile::kXOffset;
#pragma unroll 1
      for (int chunk = 0; chunk * Tile::kPer < columns; chunk += 4) {
        uint32_t a[Shape::kOwnRows][2][4];
#pragma unroll
        for (int rt = 0; rt < Shape::kOwnRows; ++rt) {
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            load_matrices<false>(a[rt][s],
                                 rows_address<Tile::kChunks>(weight, row0 + rt * 16, chunk + s * 2, warp.lane));
          }
        }
#pragma unroll
        for (int ct = 0; ct < Shape::kOwnColumns; ++ct) {
          uint32_t b[4];
          load_matrices<false>(b, columns_address<Tile::kChunks>(x, column0 + ct * 8, chunk, warp.lane));
#pragma unroll
          for (int rt = 0; rt < Shape::kOwnRows; ++rt) {
#pragma unroll
            for (int s = 0; s < 2; ++s) {
              mma_16x8x16<T, Shape::kIsa>(sums[rt][ct], a[rt][s], b[s * 2], b[s * 2 + 1]);
            }
          }
        }
      }
    } else {
#pragma unroll 1
      for (int c = 0; c < columns; ++c) {
        float code[Shape::kOwnRows][2];
#pragma unroll
        for (int rt = 0; rt < Shape::kOwnRows; ++rt) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            code[rt][h] = outlier_at<T, Shape>(memory, row0 + rt * 16 + h * 8 + warp.row(), c);
          }
        }
#pragma unroll
        for (int ct = 0; ct < Shape::kOwnColumns; ++ct) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float x = outlier_at<T, Shape>(memory + Tile::kXOffset, column0 + ct * 8 + warp.column() + i, c);
#pragma unroll
            for (int rt = 0; rt < Shape::kOwnRows; ++rt) {
#pragma unroll
              for (int h = 0; h < 2; ++h) {
                sums[rt][ct][h * 2 + i] = __fmaf_rn(x, code[rt][h], sums[rt][ct][h * 2 + i]);
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace qbits::cuda
