#include "cpu/absmax.inl.h"
#include "cpu/encode_run.inl.h"

// Included inside an instruction set's namespace, after its simd_<isa>.h.

namespace {

constexpr int64_t kChunk = 4096;  // codes held back for packing

struct Range {
  float low, high;  // of the elements and 0; NaN where an element is not finite
};

template <class T>
Range range_of(const T* x, int64_t n) {
  constexpr int kLanes = F32::kLanes;
  F32 low[2] = {set1(0.0F), set1(0.0F)};
  F32 high[2] = {set1(0.0F), set1(0.0F)};
  F32 poison[2] = {set1(0.0F), set1(0.0F)};  // 0 times a number is 0, times an infinity or NaN is NaN
  auto widen = [&](int chain, F32 v) {
    low[chain] = min(v, low[chain]);
    high[chain] = max(v, high[chain]);
    poison[chain] = muladd(v, set1(0.0F), poison[chain]);
  };
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    widen(0, load(x + i));
    widen(1, load(x + i + kLanes));
  }
  for (; i < n; i += kLanes) {
    T rest[kLanes] = {};
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    for (int64_t j = 0; j < count; ++j) rest[j] = x[i + j];
    widen(0, load(rest));
  }
  const bool finite = sum(poison[0] + poison[1]) == 0.0F;
  if (!finite) return {__builtin_nanf(""), __builtin_nanf("")};
  return {min_lane(min(low[0], low[1])), max_lane(max(high[0], high[1]))};
}

template <class S>
float rounded_to(float x) {
  S s;
  from_float(x, s);
  return to_float(s);
}

float rounded(float x, DType dtype) {
  switch (dtype) {
    case DType::BFloat16:
      return rounded_to<BFloat16>(x);
    case DType::Float16:
      return rounded_to<Float16>(x);
    default:
      return x;
  }
}

void set(void* values, DType dtype, int64_t i, float x) {
  switch (dtype) {
    case DType::BFloat16:
      return from_float(x, static_cast<BFloat16*>(values)[i]);
    case DType::Float16:
      return from_float(x, static_cast<Float16*>(values)[i]);
    default:
      static_cast<float*>(values)[i] = x;
  }
}

struct Group {
  float scale, zero;
  bool coded() const { return scale > 0.0F; }  // else all codes are 0
};

Group group_of(Range range, float levels, DType scale_dtype) {
  const float scale = rounded(range.high / levels - range.low / levels, scale_dtype);
  if (!(scale <= 0x1.fffffep127F)) return {__builtin_bit_cast(float, 0x7fc00000), 0.0F};
  if (scale == 0.0F) return {0.0F, 0.0F};
  const float zero = std::nearbyint((0.0F - range.low) / scale);
  return {scale, zero < levels ? zero : levels};
}

template <class T>
void code_run(const T* x, int64_t n, Group group, float levels, uint8_t* codes) {
  if (!group.coded()) {
    __builtin_memset(codes, 0, static_cast<size_t>(n));
    return;
  }
  encode_run(x, n, codes, [&](F32 v) {
    const F32 code = round(v / set1(group.scale)) + set1(group.zero);
    return to_i32(min(max(code, set1(0.0F)), set1(levels)));
  });
}

// Codes of elements start.. of the whole tensor, two a byte. A start in the middle of a byte keeps its high nibble.
template <class T>
void pack_run(const T* x, int64_t start, int64_t n, Group group, float levels, uint8_t* packed) {
  uint8_t codes[1 + kChunk + 1];
  const int64_t odd = start % 2;
  for (int64_t done = 0; done < n; done += kChunk) {
    const int64_t count = n - done < kChunk ? n - done : kChunk;
    uint8_t* byte = packed + (start + done) / 2;
    if (odd) codes[0] = *byte >> 4;
    code_run(x + done, count, group, levels, codes + odd);
    codes[odd + count] = 0;
    pack_nibbles(codes, (odd + count + 1) / 2, byte);
  }
}

// The elements of group `g`.
struct Span {
  int64_t start, size;
};

Span span_of(const QuantizeAffineArgs& args, int64_t g) {
  const int64_t groups_per_row = (args.cols - 1) / args.group_size + 1;
  const int64_t first = g % groups_per_row * args.group_size;
  const int64_t left = args.cols - first;
  return {g / groups_per_row * args.cols + first, args.group_size < left ? args.group_size : left};
}

template <class T>
void quantize_groups(const QuantizeAffineArgs& args, int64_t begin, int64_t end) {
  // Ranges of several groups do not wait for one another, as long as the elements stay in the cache.
  constexpr int64_t kTogether = 16;
  const int64_t fitting = 32768 / args.group_size;
  const int64_t together = fitting < 1 ? 1 : fitting < kTogether ? fitting : kTogether;
  const bool packed = args.format->is_4bit();
  const float levels = packed ? 15.0F : 255.0F;
  const T* x = static_cast<const T*>(args.x);
  Group groups[kTogether];
  for (int64_t first = begin; first < end; first += together) {
    const int64_t last = end - first < together ? end : first + together;
    for (int64_t g = first; g < last; ++g) {
      const Span span = span_of(args, g);
      const Group group = group_of(range_of(x + span.start, span.size), levels, args.scale_dtype);
      set(args.scales, args.scale_dtype, g, group.scale);
      set(args.zeros, args.scale_dtype, g, group.zero);
      groups[g - first] = group;
    }
    for (int64_t g = first; g < last; ++g) {
      const Span span = span_of(args, g);
      if (packed) {
        pack_run(x + span.start, span.start, span.size, groups[g - first], levels, args.codes);
      } else {
        code_run(x + span.start, span.size, groups[g - first], levels, args.codes + span.start);
      }
    }
  }
}

}  // namespace

void quantize_affine_groups(const QuantizeAffineArgs& args, int64_t begin, int64_t end) {
  switch (args.x_dtype) {
    case DType::BFloat16:
      return quantize_groups<BFloat16>(args, begin, end);
    case DType::Float16:
      return quantize_groups<Float16>(args, begin, end);
    default:
      return quantize_groups<float>(args, begin, end);
  }
}
