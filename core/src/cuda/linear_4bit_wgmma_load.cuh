#pragma once

#include "cuda/linear_4bit_wgmma_parts.cuh"

namespace qbits::cuda {

// One scale, its bits as loaded: to convert them would wait for the load, and many shall be under way.
template <bool kPair>
struct WgmmaRawScale {
  uint32_t first = 0;  // absmax, its 8-bit code, or an affine scale
};
template <>
struct WgmmaRawScale<true> {
  uint32_t first = 0;
  uint32_t second = 0;  // absmax of 256 scales, or an affine zero
};

// The loading warpgroup: one warp for x, one for codes, two for scales.
template <class Shape>
struct WgmmaLoader {
  using Layout = WgmmaLayout<Shape>;
  static constexpr int kRows = Layout::kRows;
  static constexpr int kThreadRows = kRows / kWgmmaScaleThreads;
  static constexpr int kStepN = Shape::kTransposed ? kWgmmaStageDepth : 0;  // from stage to stage
  static constexpr int kStepK = Shape::kTransposed ? 0 : kWgmmaStageDepth;

  const WgmmaArgs& args;
  uint32_t window;     // the block's shared memory in its cluster
  uint32_t rank_rows;  // the block's place among those that share x
  uint32_t rank_split;
  uint32_t rows;  // of the weight: scales from there on count as 0

  __device__ void load_x(RingSlot<Shape::kXStages>& ring, int64_t m0, int64_t begin, int stages) const {
    const int share = Shape::kColumns / args.multicast;
    const uint16_t blocks = static_cast<uint16_t>(((1 << args.multicast) - 1) << (rank_split * args.multicast));
    for (int step = 0; step < 2 * stages; ++step) {
      const uint32_t full = window + Layout::kXFull + ring.slot * 8;
      barrier_wait(window + Layout::kXEmpty + ring.slot * 8, ring.parity ^ 1);
      barrier_arrive_expecting(full, Layout::kXBytes);
      const uint32_t tile = window + Layout::kX + ring.slot * Layout::kXBytes + rank_rows * share * 128;
      const int column = static_cast<int>(begin) + step * kWgmmaStepDepth;
      const int row = static_cast<int>(m0) + static_cast<int>(rank_rows) * share;
      if (args.multicast > 1) {
        copy_box_multicast(tile, &args.x, column, row, full, blocks);
      } else {
        copy_box(tile, &args.x, column, row, full);
      }
      ring.advance();
    }
  }

  // From element (n, k) of the weight on, along the depth.
  __device__ void load_codes(RingSlot<Shape::kCodeStages>& ring, int64_t n, int64_t k, int stages) const {
    for (int stage = 0; stage < stages; ++stage) {
      const uint32_t full = window + Layout::kCodesFull + ring.slot * 8;
      barrier_wait(window + Layout::kCodesEmpty + ring.slot * 8, ring.parity ^ 1);
      barrier_arrive_expecting(full, Layout::kCodeBytes);
      copy_box(window + Layout::kCodes + ring.slot * Layout::kCodeBytes, &args.codes,
               static_cast<int>((k + int64_t{stage} * kStepK) / 2), static_cast<int>(n + int64_t{stage} * kStepN),
               full);
      ring.advance();
    }
  }

  // The scale at a position of the arrays.
  template <bool kPair>
  __device__ WgmmaRawScale<kPair> start_scale(uint32_t i) const {
    const Weight4bitView& w = args.weight;
    WgmmaRawScale<kPair> raw;
    if constexpr (Shape::kAffine) {
      if (w.scale_dtype == DType::Float32) {
        raw.first = __ldg(static_cast<const uint32_t*>(w.scales) + i);
        raw.second = __ldg(static_cast<const uint32_t*>(w.zeros) + i);
      } else {
        raw.first = __ldg(static_cast<const uint16_t*>(w.scales) + i);
        raw.second = __ldg(static_cast<const uint16_t*>(w.zeros) + i);
      }
    } else if constexpr (kPair) {
      raw.first = __ldg(static_cast<const uint8_t*>(w.scales) + i);
      raw.second = __ldg(reinterpret_cast<const uint32_t*>(w.nested_absmax) + i / kNestedBlockSize);
    } else {
      raw.first = __ldg(static_cast<const uint32_t*>(w.scales) + i);
    }
    return raw;
  }

  // The position of the scale of element (n, k): runs of 32 are numbered first, for in 32 bits they suffice.
  __device__ uint32_t scale_position(uint32_t n, uint32_t k) const {
    const Weight4bitView& w = args.weight;
    const uint32_t run_shift = min(w.block_shift - 5, 31);
    if constexpr (Shape::kAffine) return n * static_cast<uint32_t>(w.row_groups) + (k / 32 >> run_shift);
    return (n * static_cast<uint32_t>(w.cols / 32) + k / 32) >> run_shift;
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

  template <bool kPair>
  __device__ void store_scale(uint32_t scales, int row, int group, const WgmmaRawScale<kPair>& raw,
                              float offset) const {
    const uint32_t at = scales + (group * kRows + row) * 4;
    if constexpr (Shape::kAffine) {
      store_shared(at, affine_value(raw.first));
      store_shared(at + kWgmmaStageGroups * kRows * 4, affine_value(raw.second));
    } else if constexpr (kPair) {
      const float value = load_shared<float>(window + Layout::kNested + raw.first * 4);
      store_shared(at, __fadd_rn(__fmul_rn(value, __uint_as_float(raw.second)), offset) * args.factor);
    } else {
      store_shared(at, __uint_as_float(raw.first) * args.factor);
    }
  }

  // Neighbouring scales of a row, loaded at once.
  struct Vector {
    uint32_t word[4];
  };

  __device__ static Vector load_vector(const void* array, size_t first, int bytes) {
    const uint8_t* const at = static_cast<const uint8_t*>(array) + first;
    Vector v;
    switch (bytes) {
      case 16: {
        const uint4 w = __ldg(reinterpret_cast<const uint4*>(at));
        v.word[0] = w.x;
        v.word[1] = w.y;
        v.word[2] = w.z;
        v.word[3] = w.w;
        break;
      }
      case 8: {
        const uint2 w = __ldg(reinterpret_cast<const uint2*>(at));
        v.word[0] = w.x;
        v.word[1] = w.y;
        break;
      }
      case 4:
        v.word[0] = __ldg(reinterpret_cast<const uint32_t*>(at));
        break;
      case 2:
        v.word[0] = __ldg(reinterpret_cast<const uint16_t*>(at));
        break;
      default:
        v.word[0] = __ldg(at);
    }
    return v;
  }

  __device__ static uint32_t element(const Vector& v, int i, int size) {
    if (size == 4) return v.word[i];
    if (size == 2) return i % 2 == 0 ? v.word[i / 2] & 0xffff : v.word[i / 2] >> 16;
    return v.word[0] >> (8 * i) & 0xff;
  }

  // The bits of the scale of run `run` of 64, of the kVectorRuns that a vector covers.
  __device__ uint32_t run_of(const Vector& v, int run, int size) const {
    if (args.scale_count == kVectorRuns) return element(v, run, size);
    if (args.scale_count == 2) return element(v, run / 2, size);
    return element(v, 0, size);
  }

  static constexpr int kVectorStages = Shape::kTransposed ? 1 : 2;
  static constexpr int kVectorRuns = kVectorStages * 2;

  // kPair: a scale is two values, affine or double-quantized.
  template <bool kPair>
  __device__ void load_scale_vectors(RingSlot<Shape::kCodeStages>& ring, int64_t n0, int64_t k0, int stages, int thread,
                                     float offset) const {
    constexpr int kAhead = kThreadRows == 2 ? 2 : 1;
    const int size = Shape::kAffine ? args.scale_size : kPair ? 1 : 4;
    struct Row {
      Vector first;
      Vector second;  // of affine zeros; word 0: absmax of 256 scales
    };
    Row ahead[kAhead][kThreadRows];
    const auto start = [&](int stage, Row(&raw)[kThreadRows]) {
      const uint32_t n = n0 + thread + stage * kStepN;
      const uint32_t k = k0 + stage * kStepK;
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        const uint32_t row = n + i * kWgmmaScaleThreads;
        if (row >= rows || k >= args.weight.cols) {
          raw[i] = Row{};
          continue;
        }
        const uint32_t position = scale_position(row, k);
        const size_t at = size_t{position} * size;
        raw[i].first = load_vector(args.weight.scales, at, size * args.scale_count);
        if constexpr (Shape::kAffine) {
          raw[i].second = load_vector(args.weight.zeros, at, size * args.scale_count);
        } else if constexpr (kPair) {
          raw[i].second.word[0] =
              __ldg(reinterpret_cast<const uint32_t*>(args.weight.nested_absmax) + position / kNestedBlockSize);
        }
      }
    };
    const auto store = [&](int part, const Row(&raw)[kThreadRows]) {
      const uint32_t scales = window + Layout::kScales + ring.slot * Layout::kScaleBytes;
      barrier_wait(window + Layout::kCodesEmpty + ring.slot * 8, ring.parity ^ 1);
#pragma unroll
      for (int i = 0; i < kThreadRows * 2; ++i) {
        const int run = part * 2 + i % 2;
        WgmmaRawScale<kPair> one;
        one.first = run_of(raw[i / 2].first, run, size);
        if constexpr (kPair)
          one.second = Shape::kAffine ? run_of(raw[i / 2].second, run, size) : raw[i / 2].second.word[0];
        store_scale(scales, thread + i / 2 * kWgmmaScaleThreads, i % 2 * 2, one, offset);
      }
      __syncwarp();
      if (thread % 32 == 0) barrier_arrive(window + Layout::kCodesFull + ring.slot * 8);
      ring.advance();
    };
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i * kVectorStages < stages) start(i * kVectorStages, ahead[i]);
    }
    for (int stage = 0; stage < stages; stage += kAhead * kVectorStages) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int at = stage + i * kVectorStages;
        if (at >= stages) break;
        store(0, ahead[i]);
        if (kVectorStages == 2 && at + 1 < stages) store(1, ahead[i]);
        if (at + kAhead * kVectorStages < stages) start(at + kAhead * kVectorStages, ahead[i]);
      }
    }
  }

  // The same for rows whose scales do not come in vectors, rare enough to be waited for longer.
  template <bool kPair>
  __device__ void load_scales(RingSlot<Shape::kCodeStages>& ring, int64_t n0, int64_t k0, int stages, int thread,
                              float offset) const {
    constexpr int kAhead = 1;
    WgmmaRawScale<kPair> ahead[kAhead][kThreadRows][2];
    const uint32_t cols = args.weight.cols;
    const auto start_at = [&](uint32_t n, uint32_t k) {
      return n < rows && k < cols ? start_scale<kPair>(scale_position(n, k)) : WgmmaRawScale<kPair>{};
    };
    const auto start = [&](int stage, WgmmaRawScale<kPair>(&raw)[kThreadRows][2]) {
      const uint32_t n = n0 + thread + stage * kStepN;
      const uint32_t k = k0 + stage * kStepK;
#pragma unroll
      for (int i = 0; i < kThreadRows * 2; ++i)
        raw[i / 2][i % 2] = start_at(n + i / 2 * kWgmmaScaleThreads, k + i % 2 * 64);
    };
    const auto store = [&](int stage, const WgmmaRawScale<kPair>(&raw)[kThreadRows][2]) {
      const uint32_t scales = window + Layout::kScales + ring.slot * Layout::kScaleBytes;
      barrier_wait(window + Layout::kCodesEmpty + ring.slot * 8, ring.parity ^ 1);
      if (args.wide_groups) {
#pragma unroll
        for (int i = 0; i < kThreadRows * 2; ++i) {
          store_scale(scales, thread + i / 2 * kWgmmaScaleThreads, i % 2 * 2, raw[i / 2][i % 2], offset);
        }
      } else {
#pragma unroll 1
        for (int i = 0; i < kThreadRows * kWgmmaStageGroups; ++i) {
          const int row = thread + i / kWgmmaStageGroups * kWgmmaScaleThreads;
          const int group = i % kWgmmaStageGroups;
          store_scale(scales, row, group, start_at(n0 + row + stage * kStepN, k0 + group * 32 + stage * kStepK),
                      offset);
        }
      }
      __syncwarp();
      if (thread % 32 == 0) barrier_arrive(window + Layout::kCodesFull + ring.slot * 8);
      ring.advance();
    };
    // A stage's registers keep their names: moving them would wait for the loads.
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (args.wide_groups && i < stages) start(i, ahead[i]);
    }
    for (int stage = 0; stage < stages; stage += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (stage + i >= stages) break;
        store(stage + i, ahead[i]);
        if (args.wide_groups && stage + i + kAhead < stages) start(stage + i + kAhead, ahead[i]);
      }
    }
  }
};

}  // namespace qbits::cuda
