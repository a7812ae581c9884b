#pragma once

#include "cuda/linear_4bit_ahead_parts.cuh"

namespace qbits::cuda {

// The warps that dequantize ahead, of all blocks together: pieces of units in their order, turn by turn.
template <class T, class Shape, bool kPair>
struct AheadDecoder {
  using Layout = AheadLayout<Shape>;
  static constexpr int kBatch = 16;              // rows under way
  static constexpr int kLookNanoseconds = 1000;  // between looks; blocks take 2500 for a step

  // A row's codes and scale, its bits as loaded: to convert them would wait.
  struct Raw {
    uint32_t codes = 0;
    uint32_t first = 0;   // absmax, its 8-bit code, or an affine scale
    uint32_t second = 0;  // absmax of 256 scales, or an affine zero; kPair only
  };

  // Where a piece lies; of the lane's columns of its first row: codes, and scales by number.
  struct Piece {
    int unit;
    int index;  // in the unit
    int rows;   // that the weight has
    const uint8_t* codes;
    int64_t scale;
    uint32_t past_scale;  // elements from the scale's first
  };

  const AheadArgs& args;
  uint32_t window;
  int lane;
  bool looks;
  int readable;  // no block reads a unit before this one
  float offset;
  AheadSchedule::Wave wave;

  __device__ AheadDecoder(const AheadArgs& args_, uint32_t window_, int lane_, bool looks_)
      : args(args_),
        window(window_),
        lane(lane_),
        looks(looks_),
        readable(0),
        offset(kPair && !Shape::kAffine ? *args_.weight.offset : 0.0F),
        wave(args_.schedule.first_wave()) {}

  // Units come in ascending order; false past the last.
  __device__ bool find(int64_t number, Piece& piece) {
    const AheadSchedule& schedule = args.schedule;
    const int64_t unit = number / kAheadPieces;
    while (unit >= int64_t{wave.first_unit} + wave.lines * schedule.steps) {
      if (schedule.is_last(wave)) return false;
      wave = schedule.next_wave(wave);
    }
    piece.unit = static_cast<int>(unit);
    piece.index = static_cast<int>(number % kAheadPieces);
    const int local = piece.unit - wave.first_unit;
    const int64_t row = int64_t{(wave.first_line + local % wave.lines) % schedule.rows} * Ahead::kUnitOutputs;
    const int64_t depth = int64_t{local / wave.lines} * Ahead::kUnitDepth;
    const int64_t n = (Shape::kTransposed ? depth : row) + piece.index * kAheadPieceRows;
    const int64_t k = (Shape::kTransposed ? row : depth) + lane * 8;
    const Weight4bitView& w = args.weight;
    piece.rows = k < w.cols ? static_cast<int>(min(w.rows - n, int64_t{kAheadPieceRows})) : 0;
    const int64_t element = n * w.cols + k;
    piece.codes = w.codes + element / 2;
    piece.scale = Shape::kAffine ? n * w.row_groups + (k >> w.block_shift) : element >> w.block_shift;
    piece.past_scale = Shape::kAffine ? 0 : static_cast<uint32_t>(element & (w.block_size - 1));
    return true;
  }

  // The bytes of a scale of codebooks, or of affine scales that are not float32.
  static constexpr int kScaleBytes = Shape::kAffine ? 2 : kPair ? 1 : 4;

  // From row to row: elements where blocks run on from row to row, else groups.
  __device__ uint32_t scale_step() const {
    return static_cast<uint32_t>(Shape::kAffine ? args.weight.row_groups : args.weight.cols);
  }
  __device__ int scale_shift() const { return Shape::kAffine ? 0 : args.weight.block_shift; }

  // A row of a piece.
  template <int kBytes>
  __device__ Raw load(const Piece& piece, uint32_t row) const {
    const Weight4bitView& w = args.weight;
    const bool valid = static_cast<int>(row) < piece.rows;
    const int64_t scale = piece.scale + ((piece.past_scale + row * scale_step()) >> scale_shift());
    Raw raw;
    raw.codes = load_if<4>(piece.codes + row * static_cast<uint32_t>(w.cols / 2), valid);
    raw.first = load_if<kBytes>(static_cast<const uint8_t*>(w.scales) + scale * kBytes, valid);
    if constexpr (Shape::kAffine) {
      raw.second = load_if<kBytes>(static_cast<const uint8_t*>(w.zeros) + scale * kBytes, valid);
    } else if constexpr (kPair) {
      raw.second = load_if<4>(w.nested_absmax + scale / kNestedBlockSize, valid);
    }
    return raw;
  }

  __device__ float affine_value(uint32_t bits) const {
    switch (args.weight.scale_dtype) {
      case DType::BFloat16:
        return __uint_as_float(bits << 16);
      case DType::Float16:
        return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
      default:
        return __uint_as_float(bits);
    }
  }

  __device__ static float look_up(uint32_t offset) {
    float value = 0.0F;
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    asm("ld.shared.f32 %0, [%1+%2];\n" : "=f"(value) : "r"(offset), "n"(Layout::kCodebook));
#endif
    return value;
  }

  // Eight weights in float32, rounded once to T.
  __device__ uint4 decode(const Raw& raw) const {
    float scale = __uint_as_float(raw.first);
    float zero = 0.0F;
    if constexpr (Shape::kAffine) {
      scale = affine_value(raw.first);
      zero = affine_value(raw.second);
    } else if constexpr (kPair) {
      const float value = load_shared<float>(window + Layout::kNested + raw.first * 4);
      scale = __fadd_rn(__fmul_rn(value, __uint_as_float(raw.second)), offset);
    }
    // Four times the first, and the second, code of each byte; the block's window joins them as bytes 1 to 3.
    const uint32_t codes[2] = {raw.codes >> 2 & 0x3c3c3c3c, raw.codes << 2 & 0x3c3c3c3c};
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float value = look_up(__byte_perm(codes[i % 2], window, 0x7650 | i / 2));
      v[i] = __fmul_rn(Shape::kAffine ? __fsub_rn(value, zero) : value, scale);
    }
    return make_uint4(pack<T>(v[0], v[1]), pack<T>(v[2], v[3]), pack<T>(v[4], v[5]), pack<T>(v[6], v[7]));
  }

  // Where the lane's 16 bytes of the piece's first row lie in its unit, but for the permutation within 128 bytes.
  __device__ uint32_t offset_of(int index) const {
    const int row = index * kAheadPieceRows;
    constexpr int kBlockBytes = Ahead::kUnitStages * Layout::kWeightBytes;
    if constexpr (Shape::kTransposed) {
      return lane / 16 * kBlockBytes + row / 64 * Layout::kWeightBytes + lane / 8 % 2 * 8192 + row % 64 * 128;
    } else {
      return row / 128 * kBlockBytes + lane / 8 * Layout::kWeightBytes + row % 128 * 128;
    }
  }

  // Until every cluster has read what a place of the ring held before. One warp of a block looks for the others.
  __device__ void wait_for_place(int unit) {
    const int wanted = unit - args.ring + 1;
    while (readable < wanted) {
      if (looks) {
        int least = INT32_MAX;
        for (int i = lane; i < args.schedule.clusters; i += 32) {
          least = min(least, load_acquire(args.progress + i * Ahead::kProgressBytes / 4));
        }
        readable = __reduce_min_sync(0xffffffff, least);
        if (lane == 0) store_shared_release(window + Layout::kReadable, readable);
      } else {
        readable = load_shared_acquire(window + Layout::kReadable);
      }
      if (readable < wanted) __nanosleep(looks ? kLookNanoseconds : kLookNanoseconds / 4);
    }
    __syncwarp();
  }

  // Brings a piece's lines closer, a row a lane.
  __device__ void prefetch(const Piece& piece) const {
    const Weight4bitView& w = args.weight;
    if (lane >= __shfl_sync(0xffffffff, piece.rows, 0)) return;
    const int64_t back = lane * 8;  // columns to the piece's first
    prefetch_to_l2(piece.codes - back / 2 + lane * (w.cols / 2));
    const int64_t scale = piece.scale + ((piece.past_scale + lane * scale_step()) >> scale_shift());
    const int size = Shape::kAffine && w.scale_dtype == DType::Float32 ? 4 : kScaleBytes;
    prefetch_to_l2(static_cast<const uint8_t*>(w.scales) + scale * size);
    if constexpr (Shape::kAffine) prefetch_to_l2(static_cast<const uint8_t*>(w.zeros) + scale * size);
  }

  template <int kBytes>
  __device__ void run_pieces(int64_t first, int64_t stride) {
    Piece piece;
    if (!find(first, piece)) return;
    Raw raw[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) raw[i] = load<kBytes>(piece, i);
    for (int64_t number = first + stride;; number += stride) {
      Piece next{};
      const bool more = find(number, next);
      if (more) prefetch(next);
      const int place = piece.unit % args.ring;
      uint8_t* to = args.units + int64_t{place} * Ahead::kUnitBytes + offset_of(piece.index);
      wait_for_place(piece.unit);
      // A row's registers take the row a batch later as soon as it is decoded.
#pragma unroll 1
      for (int row = kBatch; row <= kAheadPieceRows; row += kBatch, to += kBatch * 128) {
        if (row == kAheadPieceRows) piece = next;
        const int from = row == kAheadPieceRows ? 0 : row;
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          *reinterpret_cast<uint4*>(to + i * 128 + ((lane ^ i) & 7) * 16) = decode(raw[i]);
          raw[i] = load<kBytes>(piece, from + i);
        }
      }
      fence_copies();
      __syncwarp();
      if (lane == 0) add_release(args.ready + place, 1);
      if (!more) return;
    }
  }

  __device__ void run(int64_t first, int64_t stride) {
    if (Shape::kAffine && args.weight.scale_dtype == DType::Float32) {
      run_pieces<4>(first, stride);
    } else {
      run_pieces<kScaleBytes>(first, stride);
    }
  }

  // The other warps of the block have places to wait for yet.
  __device__ void finish() {
    if (!looks) return;
    while (!args.schedule.is_last(wave)) wave = args.schedule.next_wave(wave);
    wait_for_place(wave.first_unit + wave.lines * args.schedule.steps - 1);
  }
};

}  // namespace qbits::cuda
