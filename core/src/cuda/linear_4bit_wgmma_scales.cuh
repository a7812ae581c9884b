#pragma once

#include "cuda/linear_4bit_wgmma_operand.cuh"

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

// How scales come. kPair: two values make one, affine or double-quantized. Scale: the type of the first, and of affine
// zeros, of which one load brings kCount, for 256 (the gradient: 128) elements of a row; 0: each comes by itself.
template <bool kPairOf, class ScaleOf, int kCountOf>
struct WgmmaScaleKind {
  static constexpr bool kPair = kPairOf;
  using Scale = ScaleOf;
  static constexpr int kCount = kCountOf;
};

// Of the loading warpgroup, the two warps that bring scales.
template <class T, class Shape>
struct WgmmaScaleLoader {
  using Layout = WgmmaLayout<Shape>;
  static constexpr int kThreadRows = Layout::kScaleRows / kWgmmaScaleThreads;
  static constexpr int kRunGroups = 64 / Layout::kScaleRun;
  static constexpr int kStageRuns = Layout::kScaleGroups / kRunGroups;  // of 64, of a row in a stage
  static constexpr int kVectorStages = Shape::kTransposed ? 1 : Shape::kUnitStages;
  static constexpr int kVectorRuns = kVectorStages * kStageRuns;
  static constexpr int kStepN = Shape::kTransposed ? Shape::kStageDepth : 0;  // from stage to stage
  static constexpr int kStepK = Shape::kTransposed ? 0 : Shape::kStageDepth;

  const WgmmaArgs& args;
  uint32_t window;
  uint32_t rows;  // of the weight: scales from there on count as 0

  // Calls f with a WgmmaScaleKind. Each has code of its own, since a branch would wait for loads under way.
  template <class F>
  __device__ void for_scale_kind(const F& f) const {
    const auto for_type = [&](auto pair, auto scale) {
      constexpr bool kPair = decltype(pair)::value;
      using Scale = decltype(scale);
      if (args.scale_count == 0) return f(WgmmaScaleKind<kPair, Scale, 0>());
      if (args.scale_count == kVectorRuns) return f(WgmmaScaleKind<kPair, Scale, kVectorRuns>());
      if (kVectorRuns > 2 && args.scale_count == 2) return f(WgmmaScaleKind<kPair, Scale, 2>());
      f(WgmmaScaleKind<kPair, Scale, 1>());
    };
    if constexpr (Shape::kAffine) {
      if (args.weight.scale_dtype == DType::Float16) return for_type(std::true_type(), __half());
      if (args.weight.scale_dtype == DType::BFloat16) return for_type(std::true_type(), __nv_bfloat16());
      for_type(std::true_type(), 0.0F);
    } else {
      if (args.weight.nested_absmax != nullptr) return for_type(std::true_type(), uint8_t());
      for_type(std::false_type(), 0.0F);
    }
  }

  // The thread's scales of them.
  template <class Kind>
  __device__ void prefetch_scales(int n, int k, int thread) const {
    constexpr int kSize = sizeof(typename Kind::Scale);
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      const uint32_t row = n + thread + i * kWgmmaScaleThreads;
      if (row >= rows || k >= args.weight.cols) continue;
      const size_t at = size_t{scale_position(row, k)} * kSize;
      prefetch_to_l2(static_cast<const uint8_t*>(args.weight.scales) + at);
      if constexpr (Shape::kAffine) prefetch_to_l2(static_cast<const uint8_t*>(args.weight.zeros) + at);
    }
  }

  // The scale at a position of the arrays.
  template <class Kind>
  __device__ WgmmaRawScale<Kind::kPair> start_scale(uint32_t i) const {
    const Weight4bitView& w = args.weight;
    constexpr int kSize = sizeof(typename Kind::Scale);
    WgmmaRawScale<Kind::kPair> raw;
    raw.first = load_vector<kSize>(w.scales, size_t{i} * kSize).word[0];
    if constexpr (Shape::kAffine) {
      raw.second = load_vector<kSize>(w.zeros, size_t{i} * kSize).word[0];
    } else if constexpr (Kind::kPair) {
      raw.second = reinterpret_cast<const uint32_t*>(w.nested_absmax)[i / kNestedBlockSize];
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

  template <class Scale>
  __device__ static float affine_value(uint32_t bits) {
    if constexpr (std::is_same_v<Scale, __half>) {
      return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
    }
    return __uint_as_float(std::is_same_v<Scale, float> ? bits : bits << 16);
  }

  // Whether bits are those of a number in [0, 16).
  template <class Scale>
  __device__ static bool is_code(uint32_t bits) {
    return bits < (std::is_same_v<Scale, __half> ? 0x4c00 : std::is_same_v<Scale, float> ? 0x41800000 : 0x4180);
  }

  // `runs`: how many from there on have the scale. kCode: an affine zero is_code.
  template <class Kind, bool kCode = false>
  __device__ void store_scale(uint32_t at, int runs, const WgmmaRawScale<Kind::kPair>& raw, float offset) const {
    const auto put = [&](uint32_t to, auto v) {
      store_shared(to, v);
      if (!Shape::kTransposed && runs > 1) store_shared(to + 4, v);
    };
    const auto put_absmax = [&](float scale) {
      if constexpr (Shape::kPacked) {
        put(at, WgmmaPackedCodebook::split(scale));
      } else {
        put(at, scale);
      }
    };
    if constexpr (Shape::kAffine) {
      const float scale = affine_value<typename Kind::Scale>(raw.first);
      const float zero = affine_value<typename Kind::Scale>(raw.second);
      if constexpr (Shape::kPacked) {
        const WgmmaPackedScale packed = WgmmaPacked<T>::template split<kCode>(scale, zero);
        store_shared(at, make_uint2(packed.scale_rest, packed.first));
      } else if constexpr (Shape::kComputed) {
        const uint32_t first = __float_as_uint(scale * (1 / kZeroShift<T>));
        if constexpr (std::is_same_v<T, typename Kind::Scale>) {
          store_shared(at, make_uint2(first, pack<T>(zero * -kZeroShift<T>, zero * -kZeroShift<T>)));
        } else {
          store_shared(at, make_uint2(first, split_zero<T, kCode>(zero)));
        }
      } else if constexpr (Shape::kLookedUp) {
        put(at, scale);
        put(at + Layout::kZeros, (kAffineCentre - zero) * scale);
      } else {
        put(at, scale * (1 / kFirstCodeUnit));
        put(at + Layout::kZeros, -zero * scale);
      }
    } else if constexpr (Kind::kPair) {
      const float value = load_shared<float>(window + Layout::kNested + raw.first * 4);
      put_absmax(fmaf(value, __uint_as_float(raw.second) * args.factor, offset * args.factor));
    } else {
      put_absmax(__uint_as_float(raw.first) * args.factor);
    }
  }

  bool may_load = false;

  // For barriers, and an L1 without lines that are too old.
  __device__ void wait_to_load() {
    if (!may_load) group_sync(kWgmmaScaleBarrier, kWgmmaLoadThreads);
    may_load = true;
  }

  // The map of double quantization comes while the first scales do.
  float nested[256 / kWgmmaScaleThreads];
  bool nested_stored = true;

  __device__ void load_nested(int thread) {
    nested_stored = false;
#pragma unroll
    for (int i = 0; i < 256 / kWgmmaScaleThreads; ++i) {
      nested[i] = args.weight.nested_code[i * kWgmmaScaleThreads + thread];
    }
  }

  __device__ void store_nested(int thread) {
    if (nested_stored) return;
#pragma unroll
    for (int i = 0; i < 256 / kWgmmaScaleThreads; ++i) {
      store_shared(window + Layout::kNested + (i * kWgmmaScaleThreads + thread) * 4, nested[i]);
    }
    group_sync(kWgmmaScaleBarrier, kWgmmaScaleThreads);
    nested_stored = true;
  }

  // Neighbouring scales of a row, loaded at once.
  struct Vector {
    uint32_t word[4];
  };

  template <int kBytes>
  __device__ static Vector load_vector(const void* array, size_t first) {
    const uint8_t* const at = static_cast<const uint8_t*>(array) + first;
    Vector v;
    if constexpr (kBytes == 16) {
      const uint4 w = *reinterpret_cast<const uint4*>(at);
      v.word[0] = w.x;
      v.word[1] = w.y;
      v.word[2] = w.z;
      v.word[3] = w.w;
    } else if constexpr (kBytes == 8) {
      const uint2 w = *reinterpret_cast<const uint2*>(at);
      v.word[0] = w.x;
      v.word[1] = w.y;
    } else if constexpr (kBytes == 4) {
      v.word[0] = *reinterpret_cast<const uint32_t*>(at);
    } else if constexpr (kBytes == 2) {
      v.word[0] = *reinterpret_cast<const uint16_t*>(at);
    } else {
      v.word[0] = *at;
    }
    return v;
  }

  template <int kSize>
  __device__ static uint32_t element(const Vector& v, int i) {
    if constexpr (kSize == 4) return v.word[i];
    if constexpr (kSize == 2) return i % 2 == 0 ? v.word[i / 2] & 0xffff : v.word[i / 2] >> 16;
    return v.word[0] >> (8 * i) & 0xff;
  }

  template <class Kind>
  __device__ void load_scale_vectors(RingSlot<Shape::kCodeStages>& ring, int n0, int k0, int stages, int thread,
                                     float offset) {
    constexpr bool kPair = Kind::kPair;
    constexpr int kSize = sizeof(typename Kind::Scale);
    constexpr int kCount = Kind::kCount;
    constexpr int kWords = (kSize * kCount + 3) / 4 + (Shape::kAffine ? (kSize * kCount + 3) / 4 : kPair ? 1 : 0);
    constexpr int kAhead = kThreadRows * kWords <= 16 ? 2 : 1;  // as registers allow
    struct Row {
      Vector first;
      Vector second;  // of affine zeros; word 0: absmax of 256 scales
    };
    Row ahead[kAhead][kThreadRows];
    const uint32_t place = window + Layout::kScales + Layout::scale_place(thread, 0);  // others a constant from it
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
        const size_t at = size_t{position} * kSize;
        raw[i].first = load_vector<kSize * kCount>(args.weight.scales, at);
        if constexpr (Shape::kAffine) {
          raw[i].second = load_vector<kSize * kCount>(args.weight.zeros, at);
        } else if constexpr (kPair) {
          raw[i].second.word[0] =
              reinterpret_cast<const uint32_t*>(args.weight.nested_absmax)[position / kNestedBlockSize];
        }
      }
    };
    const auto store = [&](int part, const Row(&raw)[kThreadRows]) {
      const uint32_t at = place + ring.slot * Layout::kScaleBytes;
      const auto element_of = [&](int i) { return (part * kStageRuns + i % kStageRuns) * kCount / kVectorRuns; };
      const auto put = [&](auto code) {
#pragma unroll
        for (int i = 0; i < kThreadRows * kStageRuns; ++i) {
          const int row = i / kStageRuns;
          WgmmaRawScale<kPair> one;
          one.first = element<kSize>(raw[row].first, element_of(i));
          if constexpr (kPair) {
            one.second = Shape::kAffine ? element<kSize>(raw[row].second, element_of(i)) : raw[row].second.word[0];
          }
          store_scale<Kind, decltype(code)::value>(
              at + Layout::scale_place(row * kWgmmaScaleThreads, i % kStageRuns * kRunGroups), kRunGroups, one, offset);
        }
      };
      if constexpr (kPair && !Shape::kAffine) store_nested(thread);
      barrier_wait(window + Layout::kEmpty + ring.slot * 8, ring.parity ^ 1);
      constexpr bool kSplit = Shape::kComputed && (Shape::kPacked || !std::is_same_v<T, typename Kind::Scale>);
      bool codes = kSplit;
      if constexpr (kSplit) {
#pragma unroll
        for (int i = 0; i < kThreadRows * kStageRuns; ++i) {
          codes &= is_code<typename Kind::Scale>(element<kSize>(raw[i / kStageRuns].second, element_of(i)));
        }
      }
      if (codes) {
        put(std::bool_constant<kSplit>());
      } else {
        put(std::false_type());
      }
      __syncwarp();
      if (thread % 32 == 0) barrier_arrive(window + Layout::kFull + ring.slot * 8);
      ring.advance();
    };
    wait_to_load();
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (i * kVectorStages < stages) start(i * kVectorStages, ahead[i]);
    }
    for (int stage = 0; stage < stages; stage += kAhead * kVectorStages) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int at = stage + i * kVectorStages;
        if (at >= stages) break;
#pragma unroll
        for (int part = 0; part < kVectorStages; ++part) {
          if (at + part < stages) store(part, ahead[i]);
        }
        if (at + kAhead * kVectorStages < stages) start(at + kAhead * kVectorStages, ahead[i]);
      }
    }
  }

  // The same for rows whose scales do not come in vectors, rare enough to be waited for longer.
  template <class Kind>
  __device__ void load_scales(RingSlot<Shape::kCodeStages>& ring, int n0, int k0, int stages, int thread,
                              float offset) {
    constexpr bool kPair = Kind::kPair;
    constexpr int kAhead = 1;
    WgmmaRawScale<kPair> ahead[kAhead][kThreadRows * kStageRuns];
    const uint32_t cols = args.weight.cols;
    const auto start_at = [&](uint32_t n, uint32_t k) {
      return n < rows && k < cols ? start_scale<Kind>(scale_position(n, k)) : WgmmaRawScale<kPair>{};
    };
    const auto start = [&](int stage, WgmmaRawScale<kPair>(&raw)[kThreadRows* kStageRuns]) {
      const uint32_t n = n0 + thread + stage * kStepN;
      const uint32_t k = k0 + stage * kStepK;
#pragma unroll
      for (int i = 0; i < kThreadRows * kStageRuns; ++i)
        raw[i] = start_at(n + i / kStageRuns * kWgmmaScaleThreads, k + i % kStageRuns * 64);
    };
    const auto store = [&](int stage, const WgmmaRawScale<kPair>(&raw)[kThreadRows* kStageRuns]) {
      const uint32_t scales = window + Layout::kScales + ring.slot * Layout::kScaleBytes;
      if constexpr (kPair && !Shape::kAffine) store_nested(thread);
      barrier_wait(window + Layout::kEmpty + ring.slot * 8, ring.parity ^ 1);
      if (args.wide_groups) {
#pragma unroll
        for (int i = 0; i < kThreadRows * kStageRuns; ++i) {
          const int row = thread + i / kStageRuns * kWgmmaScaleThreads;
          store_scale<Kind>(scales + Layout::scale_place(row, i % kStageRuns * kRunGroups), kRunGroups, raw[i], offset);
        }
      } else {
#pragma unroll 1
        for (int i = 0; i < kThreadRows * Layout::kScaleGroups; ++i) {
          const int row = thread + i / Layout::kScaleGroups * kWgmmaScaleThreads;
          const int group = i % Layout::kScaleGroups;
          const uint32_t k = k0 + group * Layout::kScaleRun + stage * kStepK;
          store_scale<Kind>(scales + Layout::scale_place(row, group), 1, start_at(n0 + row + stage * kStepN, k),
                            offset);
        }
      }
      __syncwarp();
      if (thread % 32 == 0) barrier_arrive(window + Layout::kFull + ring.slot * 8);
      ring.advance();
    };
    // A stage's registers keep their names: moving them would wait for the loads.
    wait_to_load();
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
