#include "cpu/convert.inl.h"
#include "cpu/encode256.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

struct VectorOps {
  static F32 set(float x) { return set1(x); }
  static F32 quotient(F32 x, F32 y) { return x / y; }
  static F32 root(F32 x) { return sqrt(x); }
  static F32 sign(F32 x) {
    const F32 zero = set1(0.0F);
    const I32 one = set1(1);
    return to_f32(plus_if_greater(set1(0), one, x, zero) - plus_if_greater(set1(0), one, zero, x));
  }
};

// All ones where x is finite, else zero.
inline I32 finite_mask(F32 x) { return sign_mask((bits(x) & set1(0x7fffffff)) - set1(0x7f800000)); }
inline bool is_finite(float x) { return (__builtin_bit_cast(int32_t, x) & 0x7fffffff) < 0x7f800000; }
inline F32 select(I32 mask, F32 a, F32 b) { return from_bits(bits(b) ^ ((bits(a) ^ bits(b)) & mask)); }

constexpr int kBlock = static_cast<int>(kStateBlockSize);

// A block as float32, zeros behind its end.
template <class Rule>
struct BlockBuffers {
  alignas(64) float p[kBlock];
  alignas(64) float g[kBlock];
  alignas(64) float s[kStates<Rule>][kBlock];
};

template <class Rule>
class BlockUpdate {
 public:
  BlockUpdate(const OptimizerStepArgs& args, const OptimizerChunks& chunks)
      : args_(args), entry_(chunks.record->entry), c_(chunks.record->c), maps_(*chunks.maps) {}

  // Sums of squares over the elements of a block that would not be skipped.
  LayerNorms norms(int64_t block) {
    read(block);
    if (entry_.absmax1 == nullptr) {
      load_states();
    } else {
      decode_states(block);
    }
    constexpr int kLanes = F32::kLanes;
    I32 all = set1(-1);
    LayerNorms norms;
    for (int64_t i = 0; i < n_; i += kLanes) {
      F32 s[kCount];
      for (int k = 0; k < kCount; ++k) s[k] = load(b_.s[k] + i);
      const F32 p = load(b_.p + i);
      const F32 u = normed<Rule, VectorOps>(c_, p, load(b_.g + i), s);
      I32 mask = finite_mask(s[0]);
      for (int k = 1; k < kCount; ++k) mask = mask & finite_mask(s[k]);
      all = all & mask;
      store(b_.p + i, select(mask, p * p, set1(0.0F)));
      store(b_.g + i, select(mask, u * u, set1(0.0F)));
    }
    const bool finite = sum(to_f32(all)) == -1.0F * kLanes;
    if (entry_.absmax1 != nullptr && !finite) return norms;
    for (int64_t i = 0; i < n_; ++i) {
      norms.p += static_cast<double>(b_.p[i]);
      norms.u += static_cast<double>(b_.g[i]);
    }
    return norms;
  }

  // Updates a block; returns the number of its elements that were not finite.
  int64_t run(int64_t block) {
    read(block);
    if (entry_.absmax1 == nullptr) {
      load_states();
      const int64_t skipped = update<true>();
      store_states();
      store_param(skipped > 0);
      return skipped;
    }
    decode_states(block);
    update<false>();
    if (!encode_states(block)) return count_skipped();
    store_param(false);
    return 0;
  }

 private:
  static constexpr int kFirst = Rule::kFirst;
  static constexpr int kCount = kStates<Rule>;
  static constexpr bool kInMemory = kHasState<Rule>;

  void read(int64_t block) {
    const StateBlock at = state_block(entry_, block);
    start_ = at.start;
    n_ = at.size;
    widen(b_.p, entry_.param, entry_.param_dtype, start_);
    if (entry_.compensation != nullptr) {
      widen(b_.g, entry_.compensation, entry_.param_dtype, start_);
      for (int64_t i = 0; i < kBlock; i += F32::kLanes) store(b_.p + i, load(b_.p + i) + load(b_.g + i));
    }
    widen(b_.g, entry_.grad, entry_.grad_dtype, start_);
  }

  void widen(float (&to)[kBlock], const void* from, DType dtype, int64_t begin) {
    to_floats(from, dtype, begin, n_, to);
    for (int64_t i = n_; i < kBlock; ++i) to[i] = 0.0F;
  }

  // Number `k` of the elements' state lies behind those before it.
  template <class T>
  T* state(int k) const {
    return k < kFirst ? static_cast<T*>(entry_.state1) + k * entry_.numel + start_
                      : static_cast<T*>(entry_.state2) + start_;
  }
  float* scale(int k, int64_t block) const {
    const int64_t blocks = k == 0 || k >= kFirst ? 0 : state_blocks(entry_.numel, entry_.row);
    return k < kFirst ? entry_.absmax1 + k * blocks + block : entry_.absmax2 + block;
  }
  const StateMap& map(int k) const { return k < kFirst ? maps_.first : maps_.second; }

  void load_states() {
    for (int k = 0; kInMemory && k < kCount; ++k) widen(b_.s[k], state<float>(k), DType::Float32, 0);
  }
  void store_states() {
    for (int k = 0; kInMemory && k < kCount; ++k) convert(b_.s[k], n_, state<float>(k));
  }

  void decode_states(int64_t block) {
    constexpr int kLanes = F32::kLanes;
    for (int k = 0; k < kCount; ++k) {
      const float absmax = *scale(k, block);
      const float* values = map(k).values;
      const uint8_t* codes = state<uint8_t>(k);
      int64_t i = 0;
      for (; i + kLanes <= n_; i += kLanes) store(b_.s[k] + i, lookup_u8(values, codes + i) * set1(absmax));
      for (; i < n_; ++i) b_.s[k][i] = values[codes[i]] * absmax;
      for (; i < kBlock; ++i) b_.s[k][i] = 0.0F;
    }
  }

  // New p and state in the buffers. With kEach elements whose state would not be finite keep what they have, and are
  // counted; in place of gradients 0 marks them, and all ones the others.
  template <bool kEach>
  int64_t update() {
    constexpr int kLanes = F32::kLanes;
    I32 skipped = set1(0);
    for (int64_t i = 0; i < n_; i += kLanes) {
      F32 s[kCount];
      F32 old[kCount];
      for (int k = 0; k < kCount; ++k) s[k] = old[k] = load(b_.s[k] + i);
      const F32 p = load(b_.p + i);
      const F32 g = scaled_gradient<VectorOps>(c_, p, load(b_.g + i));
      F32 next = stepped<Rule, VectorOps>(c_, p, g, s);
      if constexpr (kEach) {
        I32 mask = finite_mask(s[0]);
        for (int k = 1; k < kCount; ++k) mask = mask & finite_mask(s[k]);
        next = select(mask, next, p);
        for (int k = 0; k < kCount; ++k) s[k] = select(mask, s[k], old[k]);
        skipped = skipped + ((mask ^ set1(-1)) & set1(1));
        store(b_.g + i, from_bits(mask));
      }
      for (int k = 0; k < kCount; ++k) store(b_.s[k] + i, s[k]);
      store(b_.p + i, next);
    }
    return kEach ? static_cast<int64_t>(sum(to_f32(skipped))) : 0;
  }

  // False, and nothing written, if some number is not finite.
  bool encode_states(int64_t block) {
    float absmax[kCount];
    bool finite = true;
    for (int k = 0; k < kCount; ++k) {
      absmax[k] = finite_absmax(b_.s[k], n_);
      finite &= absmax[k] == absmax[k];
    }
    if (!finite) return false;
    for (int k = 0; k < kCount; ++k) {
      uint8_t* codes = state<uint8_t>(k);
      encode_block256(map(k).encoder, b_.s[k], n_, absmax[k], codes);
      *scale(k, block) = absmax[k];
      if (k >= kFirst) continue;
      const uint8_t zero = map(k).encoder.zero_code;
      for (int64_t i = 0; i < n_; ++i)
        codes[i] -= static_cast<uint8_t>(codes[i] == zero && __builtin_signbit(b_.s[k][i]));
    }
    return true;
  }

  int64_t count_skipped() const {
    int64_t skipped = 0;
    for (int64_t i = 0; i < n_; ++i) {
      bool finite = true;
      for (int k = 0; k < kCount; ++k) finite &= is_finite(b_.s[k][i]);
      skipped += !finite;
    }
    return skipped;
  }

  // `some`: update has marked elements to be left alone.
  void store_param(bool some) {
    if (entry_.compensation != nullptr) {
      if (!some) return store_compensated(0, n_);
      for (int64_t i = 0; i < n_; ++i) {
        if (__builtin_bit_cast(int32_t, b_.g[i]) != 0) store_compensated(i, 1);
      }
      return;
    }
    if (args_.stochastic_rounding && entry_.param_dtype == DType::BFloat16) {
      for (int64_t i = 0; i < n_; ++i) {
        const uint32_t x = __builtin_bit_cast(uint32_t, b_.p[i]);
        if ((x & 0x7f800000) == 0x7f800000) continue;  // adding to these would change what they are
        b_.p[i] = __builtin_bit_cast(float, (x + random_bits(c_.random, entry_.offset + start_ + i)) & 0xffff0000U);
      }
    }
    from_floats(b_.p, n_, entry_.param, entry_.param_dtype, start_);
  }

  // Elements of the block from `first` on, and what rounding takes from them. Overwrites gradients.
  void store_compensated(int64_t first, int64_t n) {
    from_floats(b_.p + first, n, entry_.param, entry_.param_dtype, start_ + first);
    to_floats(entry_.param, entry_.param_dtype, start_ + first, n, b_.g + first);
    for (int64_t i = first; i < first + n; ++i) b_.p[i] = is_finite(b_.g[i]) ? b_.p[i] - b_.g[i] : 0.0F;
    from_floats(b_.p + first, n, entry_.compensation, entry_.param_dtype, start_ + first);
  }

  const OptimizerStepArgs& args_;
  const OptimizerEntry& entry_;
  const Coefficients& c_;
  const StateMaps& maps_;
  BlockBuffers<Rule> b_;
  int64_t start_ = 0;
  int64_t n_ = 0;
};

// Calls body(update, block) for the blocks of the chunks.
template <class Body>
void for_each_block(const OptimizerStepArgs& args, const OptimizerChunks& chunks, Body&& body) {
  dispatch_rule(args.algorithm, "optimizer_step", [&](auto rule) {
    BlockUpdate<decltype(rule)> update(args, chunks);
    const int64_t blocks = state_blocks(chunks.record->entry.numel, chunks.record->entry.row);
    const int64_t end = chunks.end * kOptimizerChunkBlocks < blocks ? chunks.end * kOptimizerChunkBlocks : blocks;
    for (int64_t block = chunks.begin * kOptimizerChunkBlocks; block < end; ++block) body(update, block);
  });
}

}  // namespace

LayerNorms optimizer_norms_chunk(const OptimizerStepArgs& args, const OptimizerChunks& chunks) {
  LayerNorms norms;
  for_each_block(args, chunks, [&](auto& update, int64_t block) {
    const LayerNorms own = update.norms(block);
    norms.p += own.p;
    norms.u += own.u;
  });
  return norms;
}

int64_t optimizer_step_chunks(const OptimizerStepArgs& args, const OptimizerChunks& chunks) {
  int64_t skipped = 0;
  for_each_block(args, chunks, [&](auto& update, int64_t block) { skipped += update.run(block); });
  return skipped;
}
