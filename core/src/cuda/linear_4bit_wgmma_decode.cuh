#pragma once

#include "cuda/linear_4bit_wgmma_parts.cuh"

// From codes in shared memory to wgmma's operand in registers, 64 output rows by 64 of depth at a time.

namespace qbits::cuda {

// linear_4bit: weight rows are output rows, the depth runs along them.
template <class T, class Shape>
struct WgmmaRowDecoder {
  using Layout = WgmmaLayout<Shape>;
  static constexpr int kRows = Layout::kRows;

  uint32_t window;      // the block's shared memory in its cluster
  uint32_t row;         // of the tile: the thread's first
  uint32_t codes;       // of that row, in a stage
  uint32_t lane_table;  // its copy of the table
  uint32_t rotation;    // that brings its byte of a word to the bits of a table offset
  bool wide_groups;
  WgmmaScale scale[2];  // of the upper and lower row

  __device__ WgmmaRowDecoder(uint32_t window_, int group, int warp, int lane, bool wide_groups_)
      : window(window_), wide_groups(wide_groups_), scale{} {
    row = group * 64 + warp * 16 + lane / 4;
    codes = window + Layout::kCodes + row * 64 + (row / 2 & 3) * 16;
    lane_table = window | lane_copy<Shape::kDecode>(lane);
    rotation = 7 - 8 * (lane % 4) & 31;
  }

  // The tile's row of the upper and lower half of a fragment.
  __device__ int output_row(int half) const { return static_cast<int>(row) + half * 8; }

  // The lane's own byte of a word.
  __device__ uint32_t decode(uint32_t word, const WgmmaScale& s) const {
    const uint32_t offset = (__funnelshift_l(word, word, rotation) & 0x7f80) | lane_table;
    const ValuePair pair = look_up<Shape::kDecode, Layout::kTable>(offset);
    if constexpr (Shape::kDecode == WgmmaDecode::Sums) return pair.bits;
    return pack<T>(scaled<Shape>(pair.first, s), scaled<Shape>(pair.second, s));
  }

  __device__ WgmmaScale scale_at(int slot, int group, int half) const {
    const uint32_t at = window + Layout::kScales + slot * Layout::kScaleBytes + (group * kRows + row + half * 8) * 4;
    return make_scale<Shape>(load_shared<float>(at),
                             Shape::kAffine ? load_shared<float>(at + kWgmmaStageGroups * kRows * 4) : 0.0F);
  }

  // Half of a unit, 32 of the depth, into two k16 steps of the operand, which want, in the order of their registers:
  // byte t of a word of the upper row, of the lower row, byte t of the next word of each. `sum_scales`: of the two
  // rows, where sums are scaled.
  __device__ void decode_half(int slot, int unit, int half, uint32_t (&out)[4][4], float (&sum_scales)[2]) {
    const int chunk = unit * 2 + half;
    if (half == 0 || (Shape::kDecode != WgmmaDecode::Sums && !wide_groups)) {
      scale[0] = scale_at(slot, chunk, 0);
      scale[1] = scale_at(slot, chunk, 1);
    }
    if (Shape::kDecode == WgmmaDecode::Sums && half == 0) {
      sum_scales[0] = scale[0].scale;
      sum_scales[1] = scale[1].scale;
    }
    const uint32_t at = (codes + slot * Layout::kCodeBytes) ^ (chunk * 16);
    const uint4 upper = load_shared<uint4>(at);
    const uint4 lower = load_shared<uint4>(at + 8 * 64);
    out[half * 2][0] = decode(upper.x, scale[0]);
    out[half * 2][1] = decode(lower.x, scale[1]);
    out[half * 2][2] = decode(upper.y, scale[0]);
    out[half * 2][3] = decode(lower.y, scale[1]);
    out[half * 2 + 1][0] = decode(upper.z, scale[0]);
    out[half * 2 + 1][1] = decode(lower.z, scale[1]);
    out[half * 2 + 1][2] = decode(upper.w, scale[0]);
    out[half * 2 + 1][3] = decode(lower.w, scale[1]);
  }
};

// The gradient: columns of the weight are output rows, the depth runs across its rows. Two columns that share a byte
// are the thread's two rows of the operand, so one lookup serves both.
template <class T, class Shape>
struct WgmmaColumnDecoder {
  using Layout = WgmmaLayout<Shape>;
  static_assert(Shape::kGroups == 2 && Shape::kDecode != WgmmaDecode::Sums);
  static constexpr int kRows = Layout::kRows;

  uint32_t window;
  uint32_t column;      // of the tile: the thread's first
  uint32_t codes;       // of its first row, in a stage
  uint32_t scales;      // of its first row, in a stage
  uint32_t lane_table;  // its copy of the table

  __device__ WgmmaColumnDecoder(uint32_t window_, int group, int warp, int lane, bool wide_groups) : window(window_) {
    const int t = lane % 4;
    column = group * 64 + warp * 16 + lane / 4 * 2;
    codes = window + Layout::kCodes + t * 128 + ((column / 32 ^ t) * 16) + column / 2 % 16;
    scales = window + Layout::kScales + ((wide_groups ? column / 64 * 2 : column / 32) * kRows + t * 2) * 4;
    lane_table = window | lane_copy<Shape::kDecode>(lane);
  }

  __device__ int output_row(int half) const { return static_cast<int>(column) + half; }

  // Rows `first` and `first` + 1 of the weight: the operand's registers of both columns.
  __device__ void decode_rows(uint32_t stage_codes, uint32_t stage_scales, int first, uint32_t& even,
                              uint32_t& odd) const {
    const uint32_t at = stage_codes + first * 64;
    const ValuePair a = look_up<Shape::kDecode, Layout::kTable>((uint32_t{load_shared<uint8_t>(at)} << 7) + lane_table);
    const ValuePair b =
        look_up<Shape::kDecode, Layout::kTable>((uint32_t{load_shared<uint8_t>(at + 64)} << 7) + lane_table);
    const float2 scale = load_shared<float2>(stage_scales + first * 4);
    float2 zero{};
    if constexpr (Shape::kAffine) zero = load_shared<float2>(stage_scales + first * 4 + kWgmmaStageGroups * kRows * 4);
    const WgmmaScale sa = make_scale<Shape>(scale.x, zero.x);
    const WgmmaScale sb = make_scale<Shape>(scale.y, zero.y);
    even = pack<T>(scaled<Shape>(a.first, sa), scaled<Shape>(b.first, sb));
    odd = pack<T>(scaled<Shape>(a.second, sa), scaled<Shape>(b.second, sb));
  }

  __device__ void decode_half(int slot, int unit, int half, uint32_t (&out)[4][4], float (&)[2]) const {
    const uint32_t stage_codes = codes + slot * Layout::kCodeBytes;
    const uint32_t stage_scales = scales + slot * Layout::kScaleBytes;
#pragma unroll
    for (int step = half * 2; step < half * 2 + 2; ++step) {
      decode_rows(stage_codes, stage_scales, unit * 64 + step * 16, out[step][0], out[step][1]);
      decode_rows(stage_codes, stage_scales, unit * 64 + step * 16 + 8, out[step][2], out[step][3]);
    }
  }
};

}  // namespace qbits::cuda
