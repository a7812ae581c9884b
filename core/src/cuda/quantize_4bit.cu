#include "ops/quantize_4bit.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda/quantize_blocks.cuh"
#include "ops/encoder16.h"

namespace qbits::cuda {
namespace {

// Quotients by equal steps, half of the bins for each sign: a bin holds one threshold at most, and one word a bank
// makes the lookups of a warp free of conflicts. The quotients here are 2^32 times the real ones.
struct Bins16 {
  static constexpr int kBins = 32;
  static constexpr float kPerUnit = 15.984375F;  // bins; a quotient of 1 must be in the last one

  float thresholds[kBins];  // infinite where there is none
  uint32_t codes[kBins];    // the code up to the threshold in the top nibble, the code above it in the next

  // Rounded down, the sum has four times the bin in its low bits.
  __device__ static uint32_t byte_offset(float q) {
    return __float_as_uint(__fmaf_rd(q, kPerUnit * 0x1p-32F, 0x1p21F + kBins / 2)) & (4 * (kBins - 1));
  }
};

Bins16 make_bins(const Encoder16& encoder, const Format& format) {
  // The largest quotient below -0 ends the negative bins.
  const float below_zero = -std::numeric_limits<float>::denorm_min();
  Bins16 bins;
  for (int bin = 0; bin < Bins16::kBins; ++bin) {
    int below = 0;
    int inside = 0;
    for (float t : encoder.thresholds) {
      const int its = static_cast<int>(std::floor(double{t} * Bins16::kPerUnit)) + Bins16::kBins / 2;
      if (its < bin) ++below;
      if (its == bin && t != below_zero) ++inside;
    }
    if (inside > 1) {
      throw Error(ErrorCode::Unsupported, "[quantize_4bit] format: got " + std::string(format.name) +
                                              " with thresholds too close for CUDA, want nf4 or fp4");
    }
    const uint32_t low = encoder.codes[below];
    const uint32_t high = encoder.codes[std::min(below + 1, 15)];
    bins.thresholds[bin] = inside > 0 ? encoder.thresholds[below] * 0x1p32F : std::numeric_limits<float>::infinity();
    bins.codes[bin] = low << 28 | high << 24;
  }
  return bins;
}

struct Codebook16Quantizer {
  using Shared = Bins16;
  using Block = CodebookBlock;
  static constexpr int kMaxima = 1;

  Bins16 bins;
  uint32_t zero_codes;  // a word of them
  bool signed_zeros;
  uint8_t* codes;
  float* absmax;

  __device__ void prepare(Shared& shared) const {
    const int i = static_cast<int>(threadIdx.x);
    if (i >= Bins16::kBins) return;
    shared.thresholds[i] = bins.thresholds[i];
    shared.codes[i] = bins.codes[i];
  }

  template <class Values>
  __device__ static void observe(const Values& x, int (&maxima)[1]) {
    maxima[0] = largest_magnitude(x);
  }
  __device__ Block finish(const Shared&, const int (&maxima)[1]) const {
    return Block(finite_magnitude(maxima[0]), signed_zeros);
  }
  __device__ void write_scale(const Block& block, int64_t index) const { absmax[index] = block.absmax; }

  template <class Values>
  __device__ PackedRun<4> encode(const Shared& shared, const Block& block, const Values& values) const {
    float x[kRun];
    block.widen(values, x);
    PackedRun<4> packed;
#pragma unroll
    for (int w = 0; w < kRun / 8; ++w) {
      uint32_t word = 0;
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const float q = block.quotient(x[8 * w + shifted_in<4>(k)]);
        const uint32_t offset = Bins16::byte_offset(q);
        uint32_t code = *reinterpret_cast<const uint32_t*>(reinterpret_cast<const char*>(shared.codes) + offset);
        if (q > *reinterpret_cast<const float*>(reinterpret_cast<const char*>(shared.thresholds) + offset)) code <<= 4;
        word = __funnelshift_l(code, word, 4);
      }
      packed.words[w] = block.absmax > 0.0F ? word : zero_codes;
    }
    return packed;
  }
};

}  // namespace

void quantize_4bit(const Quantize4bitArgs& args, Stream stream) {
  constexpr std::string_view op = "quantize_4bit";
  const DeviceGuard guard(args.device, op);
  const Encoder16 encoder = make_encoder16(*args.format);
  const float below_zero = -std::numeric_limits<float>::denorm_min();
  const Codebook16Quantizer quantizer{
      .bins = make_bins(encoder, *args.format),
      .zero_codes = encoder.zero_code * 0x11111111U,
      .signed_zeros = std::find(encoder.thresholds, encoder.thresholds + 15, below_zero) != encoder.thresholds + 15,
      .codes = args.codes,
      .absmax = args.absmax};
  dispatch_float(args.x_dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_bool(is_aligned(args.x, 16) && is_aligned(args.codes, sizeof(PackedRun<4>)), [&](auto aligned) {
      launch_quantize_blocks(op, TensorInput<T, aligned>{static_cast<const T*>(args.x)}, args.n, args.block_size,
                             quantizer, stream);
    });
  });
}

}  // namespace qbits::cuda
