#pragma once

#include "cuda/linear_4bit_wgmma_operand.cuh"

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
  uint32_t top;         // of fractions
  uint32_t selector;    // that puts its byte of a word into lane_table, or into both halves of a word

  __device__ WgmmaRowDecoder(uint32_t window_, int group, int warp, int lane, bool) : window(window_) {
    row = group * 64 + warp * 16 + lane / 4;
    codes = window + Layout::kCodes + row * kLine + (row * kLine / 128 % (kLine / 16)) * 16;
    scales = window + Layout::kScales + Layout::scale_place(row, 0);
    lane_table = lane_of_table(window, lane);
    top = fraction_top(window);
    selector = Shape::kLookedUp ? byte_of_table(lane % 4) : 0x4040 | (lane % 4) * 0x0101;
  }

  // The tile's row of the upper and lower half of a fragment.
  __device__ int output_row(int half) const { return static_cast<int>(row) + half * 8; }

  // The lane's own byte of a word. kSecond: zeros are of two parts.
  template <bool kSecond>
  __device__ uint32_t decode(uint32_t word, const WgmmaScale& s) const {
    if constexpr (Shape::kComputed) {
      return subtract_zero<T, kSecond>(__byte_perm(word, 0, selector), __float_as_uint(s.zero));
    }
    uint32_t pair = 0;
    if constexpr (Shape::kLookedUp) {
      pair = look_up<Layout::kTable>(__byte_perm(word, lane_table, selector));
    } else {
      pair = __byte_perm(word, 0, selector) & kCodesOfByteTwice;
    }
    if constexpr (Shape::kDecode == WgmmaDecode::Sums) return pair;
    return pack<T>(scaled<T, Shape, 0>(pair, top, s), scaled<T, Shape, 1>(pair, top, s));
  }

  // What a step of 64 of the depth is decoded from.
  struct Raw {
    uint4 upper[2];  // codes of 32 of the depth each
    uint4 lower[2];
    float scale[2][2];  // of those, of the upper and lower row
    float zero[2][2];
  };

  __device__ void fetch(int stage, int step, Raw& raw) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int chunk = step * 2 + half;
      const uint32_t at = (codes ^ (chunk * 16)) + stage * Layout::kCodeBytes;
      raw.upper[half] = load_shared<uint4>(at);
      raw.lower[half] = load_shared<uint4>(at + 8 * kLine);
    }
    const uint32_t at = scales + stage * Layout::kScaleBytes + Layout::scale_place(0, step * (64 / Layout::kScaleRun));
    if constexpr (Shape::kComputed) {
      const float4 v = load_shared<float4>(at);
      raw.scale[0][0] = v.x;
      raw.zero[0][0] = v.y;
      raw.scale[0][1] = v.z;
      raw.zero[0][1] = v.w;
    } else {
      load_scales(at, raw.scale);
      if constexpr (Shape::kAffine) load_scales(at + Layout::kZeros, raw.zero);
    }
  }

  // Of the runs of a step, of the upper and lower row.
  __device__ static void load_scales(uint32_t at, float (&to)[2][2]) {
    if constexpr (Layout::kScaleRun == 64) {
      const float2 v = load_shared<float2>(at);
      to[0][0] = v.x;
      to[0][1] = v.y;
    } else {
      const float4 v = load_shared<float4>(at);
      to[0][0] = v.x;
      to[1][0] = v.y;
      to[0][1] = v.z;
      to[1][1] = v.w;
    }
  }

  // A step's scale of a row, of which words are decoded: numbers of T, each twice.
  struct PackedRow {
    uint32_t lower;
    uint32_t upper;
    uint32_t first;  // affine
  };
  __device__ static PackedRow packed_row(float both_halves, float first) {
    const uint32_t both = __float_as_uint(both_halves);
    return {__byte_perm(both, 0, 0x1010), __byte_perm(both, 0, 0x3232), __float_as_uint(first)};
  }

  template <bool>
  __device__ uint32_t decode(uint32_t word, const PackedRow& row) const {
    if constexpr (Shape::kAffine) {
      return WgmmaPacked<T>::weight_of(__byte_perm(word, 0, selector), row.first, row.lower, row.upper);
    } else {
      const uint32_t values = look_up<Layout::kTable>(__byte_perm(word, lane_table, selector));
      return WgmmaPackedCodebook::weights_of(values, row.upper, row.lower);
    }
  }

  // Of the upper and lower row, for a half of a step.
  __device__ static auto scale_of(const Raw& raw, int half, int row) {
    if constexpr (Shape::kPacked) {
      return packed_row(raw.scale[0][row], Shape::kAffine ? raw.zero[0][row] : 0.0F);
    } else {
      const int run = Layout::kScaleRun == 64 ? 0 : half;
      return make_scale<T, Shape>(raw.scale[run][row], raw.zero[run][row]);
    }
  }

  // Into four k16 steps of the operand, which want, in the order of their registers: byte t of a word of the upper row,
  // of the lower row, byte t of the next word of each. `sum_scales`: of the two rows, where sums are scaled.
  template <bool kSecond>
  __device__ void decode(const Raw& raw, int, int, uint32_t (&out)[4][4], float (&sum_scales)[2]) const {
    if constexpr (Shape::kDecode == WgmmaDecode::Sums) {
      sum_scales[0] = raw.scale[0][0];
      sum_scales[1] = raw.scale[0][1];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4& upper = raw.upper[half];
      const uint4& lower = raw.lower[half];
      const auto first = scale_of(raw, half, 0);
      const auto second = scale_of(raw, half, 1);
      out[half * 2][0] = decode<kSecond>(upper.x, first);
      out[half * 2][1] = decode<kSecond>(lower.x, second);
      out[half * 2][2] = decode<kSecond>(upper.y, first);
      out[half * 2][3] = decode<kSecond>(lower.y, second);
      out[half * 2 + 1][0] = decode<kSecond>(upper.z, first);
      out[half * 2 + 1][1] = decode<kSecond>(lower.z, second);
      out[half * 2 + 1][2] = decode<kSecond>(upper.w, first);
      out[half * 2 + 1][3] = decode<kSecond>(lower.w, second);
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
  uint32_t column;        // of the tile: the thread's first
  uint32_t codes;         // of the row that the lane reads for others, in a stage
  uint32_t scales;        // of its first row, in a stage
  uint32_t lane_table;    // its copy of the table
  uint32_t top;           // of fractions
  uint32_t selectors[2];  // that put its byte of the first, or the second, half of a word into lane_table

  // Two warps share 16 bytes of a row: lane / 4 takes two of them, the even warp the first.
  __device__ WgmmaColumnDecoder(uint32_t window_, int group, int warp, int lane, bool wide_groups) : window(window_) {
    column = group * 64 + warp / 2 * 32 + lane / 4 * 4 + warp % 2 * 2;
    codes = window + Layout::kCodes + lane * 64 + ((column / 32 ^ (lane / 2 & 3)) * 16);
    scales = window + Layout::kScales + (wide_groups ? column / 64 * 2 : column / 32) * Layout::kScaleGroupBytes +
             Layout::scale_place(lane % 4 * 2, 0);
    lane_table = lane_of_table(window, lane);
    top = fraction_top(window);
    selectors[0] = byte_of_table(warp % 2);
    selectors[1] = byte_of_table(2 + warp % 2);
  }

  __device__ int output_row(int half) const { return static_cast<int>(column) + half; }

  // The codes of a step: of each 8 rows the lane's pair of rows, 16 bits of each.
  struct Raw {
    uint32_t rows[2][4];
  };

  __device__ void fetch(int stage, int step, Raw& raw) const {
    const uint32_t at = codes + stage * Layout::kCodeBytes + step * 64 * 64;
    load_matrices<true>(raw.rows[0], at);
    load_matrices<true>(raw.rows[1], at + 32 * 64);
  }

  template <bool>
  __device__ void decode(const Raw& raw, int stage, int step, uint32_t (&out)[4][4], float (&)[2]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t at = scales + stage * Layout::kScaleBytes + Layout::scale_place(step * 64 + i * 16, 0);
      const float4 scale = load_shared<float4>(at);
      float4 zero{};
      if constexpr (Shape::kAffine) zero = load_shared<float4>(at + Layout::kZeros);
      decode_rows(raw.rows[i / 2][i % 2 * 2], make_scale<T, Shape>(scale.x, zero.x),
                  make_scale<T, Shape>(scale.y, zero.y), out[i][0], out[i][1]);
      decode_rows(raw.rows[i / 2][i % 2 * 2 + 1], make_scale<T, Shape>(scale.z, zero.z),
                  make_scale<T, Shape>(scale.w, zero.w), out[i][2], out[i][3]);
    }
  }

  // Of two rows of the weight, for both columns.
  __device__ void decode_rows(uint32_t codes_of, const WgmmaScale& sa, const WgmmaScale& sb, uint32_t& first,
                              uint32_t& second) const {
    const uint32_t a = look_up<Layout::kTable>(__byte_perm(codes_of, lane_table, selectors[0]));
    const uint32_t b = look_up<Layout::kTable>(__byte_perm(codes_of, lane_table, selectors[1]));
    first = pack<T>(scaled<T, Shape, 0>(a, top, sa), scaled<T, Shape, 0>(b, top, sb));
    second = pack<T>(scaled<T, Shape, 1>(a, top, sa), scaled<T, Shape, 1>(b, top, sb));
  }
};

}  // namespace qbits::cuda
