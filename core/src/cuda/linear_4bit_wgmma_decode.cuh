#pragma once

#include "cuda/linear_4bit_wgmma_parts.cuh"

// From codes in shared memory to wgmma's operand in registers, 64 output rows by 64 of depth at a time.

namespace qbits::cuda {

// linear_4bit: weight rows are output rows, the depth runs along them.
template <class T, class Shape>
struct WgmmaRowDecoder {
  using Layout = WgmmaLayout<Shape>;
  static constexpr int kLine = Shape::kStageDepth / 2;  // bytes of a row in a stage

  uint32_t window;      // the block's shared memory
  uint32_t row;         // of the tile: the thread's first
  uint32_t codes;       // of that row, in a stage
  uint32_t scales;      // of that row, in a stage
  uint32_t lane_table;  // its copy of the table
  uint32_t selector;    // that puts its byte of a word into lane_table
  bool wide_groups;

  __device__ WgmmaRowDecoder(uint32_t window_, int group, int warp, int lane, bool wide_groups_)
      : window(window_), wide_groups(wide_groups_) {
    row = group * 64 + warp * 16 + lane / 4;
    codes = window + Layout::kCodes + row * kLine + (row * kLine / 128 % (kLine / 16)) * 16;
    scales = window + Layout::kScales + scale_place(row);
    lane_table = window | lane_copy<Shape::kDecode>(lane);
    selector = 0x7604 | (lane % 4) << 4;
  }

  // The tile's row of the upper and lower half of a fragment.
  __device__ int output_row(int half) const { return static_cast<int>(row) + half * 8; }

  // The lane's own byte of a word.
  __device__ uint32_t decode(uint32_t word, const WgmmaScale& s) const {
    const ValuePair pair = look_up<Shape::kDecode, Layout::kTable>(__byte_perm(word, lane_table, selector));
    if constexpr (Shape::kDecode == WgmmaDecode::Sums) return pair.bits;
    return pack<T>(scaled<Shape>(pair.first, s), scaled<Shape>(pair.second, s));
  }

  // What a unit of 64 of the depth is decoded from.
  struct Raw {
    uint4 upper[2];  // codes of 32 of the depth each
    uint4 lower[2];
    float scale[2][2];  // of those, of the upper and lower row
    float zero[2][2];
  };

  __device__ void fetch(int slot, int unit, Raw& raw) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int chunk = unit * 2 + half;
      const uint32_t at = (codes + slot * Layout::kCodeBytes) ^ (chunk * 16);
      raw.upper[half] = load_shared<uint4>(at);
      raw.lower[half] = load_shared<uint4>(at + 8 * kLine);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int half = i / 2;
      if (half == 1 && (Shape::kDecode == WgmmaDecode::Sums || wide_groups)) continue;
      const uint32_t at =
          scales + slot * Layout::kScaleBytes + (unit * 2 + half) * Layout::kScaleGroupBytes + i % 2 * 32;
      raw.scale[half][i % 2] = load_shared<float>(at);
      raw.zero[half][i % 2] = Shape::kAffine ? load_shared<float>(at + Layout::kZeros) : 0.0F;
    }
  }

  // Into four k16 steps of the operand, which want, in the order of their registers: byte t of a word of the upper row,
  // of the lower row, byte t of the next word of each. `sum_scales`: of the two rows, where sums are scaled.
  __device__ void decode(const Raw& raw, int, int, uint32_t (&out)[4][4], float (&sum_scales)[2]) const {
    if constexpr (Shape::kDecode == WgmmaDecode::Sums) {
      sum_scales[0] = raw.scale[0][0];
      sum_scales[1] = raw.scale[0][1];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4& upper = raw.upper[half];
      const uint4& lower = raw.lower[half];
      const int run = wide_groups ? 0 : half;
      const WgmmaScale scale[2] = {
          make_scale<Shape>(run == 0 ? raw.scale[0][0] : raw.scale[1][0], run == 0 ? raw.zero[0][0] : raw.zero[1][0]),
          make_scale<Shape>(run == 0 ? raw.scale[0][1] : raw.scale[1][1], run == 0 ? raw.zero[0][1] : raw.zero[1][1])};
      out[half * 2][0] = decode(upper.x, scale[0]);
      out[half * 2][1] = decode(lower.x, scale[1]);
      out[half * 2][2] = decode(upper.y, scale[0]);
      out[half * 2][3] = decode(lower.y, scale[1]);
      out[half * 2 + 1][0] = decode(upper.z, scale[0]);
      out[half * 2 + 1][1] = decode(lower.z, scale[1]);
      out[half * 2 + 1][2] = decode(upper.w, scale[0]);
      out[half * 2 + 1][3] = decode(lower.w, scale[1]);
    }
  }
};

// The gradient: columns of the weight are output rows, the depth runs across its rows. Two columns that share a byte
// are the thread's two rows of the operand, so one lookup serves both.
template <class T, class Shape>
struct WgmmaColumnDecoder {
  using Layout = WgmmaLayout<Shape>;
  static_assert(Shape::kGroups == 2 && Shape::kDecode != WgmmaDecode::Sums);

  uint32_t window;
  uint32_t column;      // of the tile: the thread's first
  uint32_t codes;       // of its first row, in a stage
  uint32_t scales;      // of its first row, in a stage
  uint32_t lane_table;  // its copy of the table

  __device__ WgmmaColumnDecoder(uint32_t window_, int group, int warp, int lane, bool wide_groups) : window(window_) {
    const int t = lane % 4;
    column = group * 64 + warp * 16 + lane / 4 * 2;
    codes = window + Layout::kCodes + t * 128 + ((column / 32 ^ t) * 16) + column / 2 % 16;
    scales = window + Layout::kScales + (wide_groups ? column / 64 * 2 : column / 32) * Layout::kScaleGroupBytes +
             scale_place(t * 2);
    lane_table = window | lane_copy<Shape::kDecode>(lane);
  }

  __device__ int output_row(int half) const { return static_cast<int>(column) + half; }

  // The codes of a unit, a byte of two columns each: rows that follow one another in pairs.
  struct Raw {
    uint32_t bytes[16];
  };

  __device__ static int first_row(int unit, int pair) { return unit * 64 + pair * 8; }

  __device__ void fetch(int slot, int unit, Raw& raw) const {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const uint32_t at = codes + slot * Layout::kCodeBytes + first_row(unit, i / 2) * 64 + i % 2 * 64;
      raw.bytes[i] = load_shared<uint8_t>(at);
    }
  }

  __device__ ValuePair pair_of(uint32_t byte) const {
    return look_up<Shape::kDecode, Layout::kTable>(byte * kTablePitch + lane_table);
  }

  __device__ void decode(const Raw& raw, int slot, int unit, uint32_t (&out)[4][4], float (&)[2]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const ValuePair a = pair_of(raw.bytes[i * 2]);
      const ValuePair b = pair_of(raw.bytes[i * 2 + 1]);
      const uint32_t at = scales + slot * Layout::kScaleBytes + scale_place(first_row(unit, i));
      const float2 scale = load_shared<float2>(at);
      float2 zero{};
      if constexpr (Shape::kAffine) zero = load_shared<float2>(at + Layout::kZeros);
      const WgmmaScale sa = make_scale<Shape>(scale.x, zero.x);
      const WgmmaScale sb = make_scale<Shape>(scale.y, zero.y);
      out[i / 2][i % 2 * 2] = pack<T>(scaled<Shape>(a.first, sa), scaled<Shape>(b.first, sb));
      out[i / 2][i % 2 * 2 + 1] = pack<T>(scaled<Shape>(a.second, sa), scaled<Shape>(b.second, sb));
    }
  }
};

}  // namespace qbits::cuda
