#pragma once

#include "cuda/optimizer_state.cuh"
#include "cuda/optimizer_step_kernels.h"
#include "ops/optimizer_rules.h"

// What one warp does with one block of a tensor: the update by a rule, or the norms that scale a layer. Dtypes are
// looked at when the block is read and written, so that one kernel serves them all.

namespace qbits::cuda {

// Quotients and roots as nvcc emits them for ordinary operands, without the branches for the others: all are rounded
// once but those of numerators below 2^-100 or of roots of such numbers. 0 has the root 0.
struct FloatOps {
  __device__ static float set(float x) { return x; }
  __device__ static float quotient(float x, float y) {
    const float estimate = approximate_reciprocal(y);
    const float reciprocal = __fmaf_rn(__fmaf_rn(-y, estimate, 1.0F), estimate, estimate);
    const float near = __fmul_rn(x, reciprocal);
    const float q = __fmaf_rn(__fmaf_rn(-near, y, x), reciprocal, near);
    return __fmaf_rn(__fmaf_rn(-q, y, x), reciprocal, q);
  }
  __device__ static float root(float x) {
    float inverse;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(fmaxf(x, 0x1p-126F)));
    const float r = __fmul_rn(x, inverse);
    return __fmaf_rn(__fmaf_rn(-r, r, x), 0.5F * inverse, r);
  }
  __device__ static float sign(float x) { return x > 0.0F ? 1.0F : x < 0.0F ? -1.0F : 0.0F; }
};

template <class Rule>
struct StateTables {
  FirstTable first;
  SecondTable second;
};
template <class Rule>
  requires(Rule::kSecond == 0)
struct StateTables<Rule> {
  FirstTable first;
};
struct NoTables {};

// The larger magnitude as bits, NaN counting as larger than all.
__device__ inline int larger_magnitude(int bits, float x) {
#if __CUDA_ARCH__ >= 800
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(__int_as_float(bits)), "f"(fabsf(x)));
  return __float_as_int(larger);
#else
  return max(bits, __float_as_int(x) & 0x7fffffff);
#endif
}

__device__ inline int warp_max(int x) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffU, x);
#else
  for (int offset = 16; offset > 0; offset /= 2) x = max(x, __shfl_xor_sync(0xffffffffU, x, offset));
  return x;
#endif
}

__device__ inline bool is_finite(float x) { return (__float_as_int(x) & 0x7fffffff) < static_cast<int>(kInfinityBits); }

// One warp's update of one block.
template <class Rule, bool k8bit, class Tables>
class WarpUpdate {
 public:
  __device__ WarpUpdate(const OptimizerRecord& record, const OptimizerWork& work, const Tables& tables)
      : entry_(record.entry), c_(record.c), work_(work), tables_(tables) {}

  // Updates every `step`-th block of `block` to `end`. The next one, if whole, is read while one is computed.
  __device__ void run(int64_t block, int64_t end, int step) {
    Read next;
    bool comes = start(block, end, next);
    for (; block < end; block += step) {
      const BlockPlace at = place(block);
      const bool came = comes;
      Read now = next;
      comes = start(block + step, end, next);
      if (came) {
        run<true>(block, at, now);
      } else {
        now.template load<false>(*this, block, at);
        run<false>(block, at, now);
      }
    }
  }

  // Adds the squares of this lane's elements of a block, as far as they are not skipped.
  __device__ void add_norms(int64_t block, LayerNorms& sum) const {
    const BlockPlace at = place(block);
    if (entry_.vectors && at.valid == kStateBlock) {
      norms<true>(block, at, sum);
    } else {
      norms<false>(block, at, sum);
    }
  }

 private:
  static constexpr int kFirst = Rule::kFirst;
  static constexpr int kCount = kStates<Rule>;

  __device__ BlockPlace place(int64_t block) const {
    const StateBlock at = state_block(entry_, block);
    return {.start = at.start, .lane = static_cast<int>(threadIdx.x) % 32, .valid = static_cast<int>(at.size)};
  }

  // The numbers of element `j`, as rules take them.
  __device__ static void gather(const float (&s)[kCount][kPerLane], int j, float (&own)[kCount]) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) own[k] = s[k][j];
  }

  __device__ static bool are_finite(const float (&own)[kCount]) {
    bool finite = true;
#pragma unroll
    for (int k = 0; k < kCount; ++k) finite = finite && is_finite(own[k]);
    return finite;
  }

  // Number `k` of an element's state.
  template <class T>
  __device__ T* state(int k) const {
    return k < kFirst ? static_cast<T*>(entry_.state1) + k * entry_.numel : static_cast<T*>(entry_.state2);
  }
  __device__ float* scale(int k, int64_t block) const {
    if (k >= kFirst) return global(entry_.absmax2 + block);
    return global(entry_.absmax1 + (k == 0 ? 0 : k * state_blocks(entry_.numel, entry_.row)) + block);
  }

  // A block as it lies in memory.
  struct Read {
    LaneWords param;
    LaneWords grad;
    LaneWords states[k8bit || !kHasState<Rule> ? 1 : kCount];
    LaneCodes codes[kCount];
    float absmax[kCount];

    template <bool kWhole>
    __device__ void load(const WarpUpdate& of, int64_t block, const BlockPlace& at) {
      param.template load<kWhole>(of.entry_.param, of.entry_.param_dtype == DType::Float32, at);
      grad.template load<kWhole>(of.entry_.grad, of.entry_.grad_dtype == DType::Float32, at);
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if constexpr (k8bit) {
          codes[k].template load<kWhole>(of.template state<const uint8_t>(k), at);
          absmax[k] = *of.scale(k, block);
        } else if constexpr (kHasState<Rule>) {
          states[k].template load<kWhole>(of.template state<const float>(k), true, at);
        }
      }
    }
  };

  // Begins to read a block that is whole. False if it is not, or lies behind the end.
  __device__ bool start(int64_t block, int64_t end, Read& to) const {
    if (block >= end) return false;
    const BlockPlace at = place(block);
    if (!entry_.vectors || at.valid != kStateBlock) return false;
    to.template load<true>(*this, block, at);
    return true;
  }

  template <bool kWhole>
  __device__ void widen(const Read& from, const BlockPlace& at, float (&p)[kPerLane], float (&g)[kPerLane],
                        float (&s)[kCount][kPerLane]) const {
    widen_states<kWhole>(from, at, s);
    from.param.widen(entry_.param_dtype, p);
    if (entry_.compensation != nullptr) add_compensation<kWhole>(at, p);
    from.grad.widen(entry_.grad_dtype, g);
  }

  template <bool kWhole>
  __device__ void add_compensation(const BlockPlace& at, float (&p)[kPerLane]) const {
    LaneWords words;
    float x[kPerLane];
    words.load<kWhole>(entry_.compensation, false, at);
    words.widen16(entry_.param_dtype, x);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) p[j] += x[j];
  }

  template <bool kWhole>
  __device__ void norms(int64_t block, const BlockPlace& at, LayerNorms& sum) const {
    float p[kPerLane];
    float g[kPerLane];
    float s[kCount][kPerLane];
    Read from;
    from.template load<kWhole>(*this, block, at);
    widen<kWhole>(from, at, p, g, s);
    bool all = true;
    float p_squares = 0.0F;
    float u_squares = 0.0F;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      float own[kCount];
      gather(s, j, own);
      const float u = normed<Rule, FloatOps>(c_, p[j], g[j], own);
      const bool finite = are_finite(own);
      all = all && finite;
      if (finite && (kWhole || element_of(at.lane, j) < at.valid)) {
        p_squares += p[j] * p[j];
        u_squares += u * u;
      }
    }
    if (k8bit && !__all_sync(0xffffffffU, all)) return;
    sum.p += static_cast<double>(p_squares);
    sum.u += static_cast<double>(u_squares);
  }

  // One branch for all elements; a factor of 1 changes nothing.
  __device__ void scale_gradients(const float (&p)[kPerLane], float (&g)[kPerLane]) const {
    if (c_.l2 == 0.0F && c_.grad_factor == 1.0F) return;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) g[j] = scaled_gradient<FloatOps>(c_, p[j], g[j]);
  }

  template <bool kWhole>
  __device__ void run(int64_t block, const BlockPlace& at, const Read& from) {
    float p[kPerLane];
    float g[kPerLane];
    float s[kCount][kPerLane];
    widen<kWhole>(from, at, p, g, s);
    scale_gradients(p, g);
    uint32_t skipped = 0;  // a bit for each element
    if constexpr (k8bit) {
      int largest[kCount] = {};
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        float own[kCount];
        gather(s, j, own);
        p[j] = stepped<Rule, FloatOps>(c_, p[j], g[j], own);
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          s[k][j] = own[k];
          largest[k] = larger_magnitude(largest[k], own[k]);
        }
      }
      if (!write_codes<kWhole>(block, at, s, largest)) return;
    } else {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        float own[kCount];
        gather(s, j, own);
        const float next = stepped<Rule, FloatOps>(c_, p[j], g[j], own);
        const bool finite = are_finite(own);
        p[j] = finite ? next : p[j];
#pragma unroll
        for (int k = 0; k < kCount; ++k) s[k][j] = finite ? own[k] : s[k][j];
        if (!finite) skipped |= 1U << j;
      }
      count(__popc(skipped));
      if constexpr (kHasState<Rule>) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) store32<kWhole>(state<float>(k), at, s[k]);
      }
    }
    write_param<kWhole>(at, p, skipped);
  }

  template <bool kWhole>
  __device__ void widen_states(const Read& from, const BlockPlace& at, float (&s)[kCount][kPerLane]) const {
    if constexpr (k8bit) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if constexpr (Rule::kSecond > 0) {
          k < kFirst ? tables_.first.decode(from.codes[k], from.absmax[k], s[k])
                     : tables_.second.decode(from.codes[k], from.absmax[k], s[k]);
        } else {
          tables_.first.decode(from.codes[k], from.absmax[k], s[k]);
        }
        if constexpr (!kWhole) {
#pragma unroll
          for (int j = 0; j < kPerLane; ++j) s[k][j] = element_of(at.lane, j) < at.valid ? s[k][j] : 0.0F;
        }
      }
    } else if constexpr (kHasState<Rule>) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) from.states[k].widen(DType::Float32, s[k]);
    } else {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) s[0][j] = 0.0F;
    }
  }

  // False, and nothing written, if a number of the block is not finite.
  template <bool kWhole>
  __device__ bool write_codes(int64_t block, const BlockPlace& at, float (&s)[kCount][kPerLane],
                              const int (&largest)[kCount]) {
    float absmax[kCount];
    bool finite = true;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      absmax[k] = __int_as_float(warp_max(largest[k]));
      finite = finite && is_finite(absmax[k]);
    }
    if (!finite) {
      int skipped = 0;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        float own[kCount];
        gather(s, j, own);
        skipped += !are_finite(own);
      }
      count(skipped);
      return false;
    }
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      LaneCodes codes;
      if constexpr (Rule::kSecond > 0) {
        codes = k < kFirst ? tables_.first.encode(absmax[k], s[k]) : tables_.second.encode(absmax[k], s[k]);
      } else {
        codes = tables_.first.encode(absmax[k], s[k]);
      }
      codes.store<kWhole>(state<uint8_t>(k), at);
      if (at.lane == 0) *scale(k, block) = absmax[k];
    }
    return true;
  }

  template <bool kWhole>
  __device__ void write_param(const BlockPlace& at, float (&p)[kPerLane], uint32_t skipped) {
    if (entry_.param_dtype == DType::Float32) {
      store32<kWhole>(static_cast<float*>(entry_.param), at, p);
      return;
    }
    if (work_.stochastic_rounding && entry_.param_dtype == DType::BFloat16) {
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        const int64_t element = entry_.offset + at.start + element_of(at.lane, j);
        const uint32_t sum = __float_as_uint(p[j]) + random_bits(c_.random, element);
        if (is_finite(p[j])) p[j] = __uint_as_float(sum & 0xffff0000U);
      }
    }
    LaneWords words;
    words.round(entry_.param_dtype, p);
    if (entry_.compensation == nullptr) {
      words.store16<kWhole>(entry_.param, at);
      return;
    }
    words.store16<kWhole>(entry_.param, at, skipped);
    float rounded[kPerLane];
    words.widen16(entry_.param_dtype, rounded);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) p[j] = is_finite(rounded[j]) ? p[j] - rounded[j] : 0.0F;
    words.round(entry_.param_dtype, p);
    words.store16<kWhole>(entry_.compensation, at, skipped);
  }

  // Adds the skipped elements of all lanes; there are hardly ever any.
  __device__ void count(int skipped) const {
    if (!__any_sync(0xffffffffU, skipped > 0)) return;
    for (int offset = 16; offset > 0; offset /= 2) skipped += __shfl_xor_sync(0xffffffffU, skipped, offset);
    if (threadIdx.x % 32 == 0) {
      atomicAdd(reinterpret_cast<unsigned long long*>(work_.skipped), static_cast<unsigned long long>(skipped));
    }
  }

  const OptimizerEntry& entry_;
  const Coefficients& c_;
  const OptimizerWork& work_;
  const Tables& tables_;
};

}  // namespace qbits::cuda
