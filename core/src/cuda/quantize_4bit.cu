#include "ops/quantize_4bit.h"

#include "cuda/quantize_blocks.cuh"
#include "ops/encoder16.h"

namespace qbits::cuda {
namespace {

// Thresholds as a binary heap: the children of entry i are 2i and 2i + 1, so four steps from entry 1 end at
// 16 + rank. One word a bank: the lookups of a warp never conflict.
struct Codebook16Quantizer {
  struct Shared {
    float heap[16];
    uint32_t codes[16];
  };
  struct Block {
    Quotient quotient;
    float absmax;
  };
  static constexpr int kMaxima = 1;

  Encoder16 encoder;
  uint8_t* codes;
  float* absmax;
  bool aligned;

  __device__ void prepare(Shared& shared) const {
    const int i = static_cast<int>(threadIdx.x);
    if (i >= 16) return;
    shared.codes[i] = encoder.codes[i];
    const int level = 31 - __clz(i | 1);
    const int sorted = (2 * (i - (1 << level)) + 1) * (1 << (3 - level)) - 1;
    shared.heap[i] = i == 0 ? 0.0F : encoder.thresholds[sorted];
  }

  __device__ static void observe(float x, int (&maxima)[1]) { maxima[0] = max(maxima[0], magnitude_bits(x)); }

  __device__ static Block finish(const int (&maxima)[1]) {
    const bool finite = maxima[0] < static_cast<int>(kInfinityBits);
    const float absmax = finite ? __int_as_float(maxima[0]) : quiet_nan();
    return {Quotient(absmax), absmax};
  }

  __device__ void write_scale(const Block& block, int64_t index) const { absmax[index] = block.absmax; }

  __device__ uint32_t encode(const Shared& shared, const Block& block, float x) const {
    if (!(block.absmax > 0.0F)) return encoder.zero_code;
    const float q = block.quotient(x);
    int node = 1;
#pragma unroll
    for (int level = 0; level < 4; ++level) node = 2 * node + (q > shared.heap[node] ? 1 : 0);
    return shared.codes[node - 16];
  }

  __device__ void store(int64_t i, int64_t n, const uint32_t (&c)[8]) const { store_nibbles(codes, aligned, i, n, c); }
};

}  // namespace

void quantize_4bit(const Quantize4bitArgs& args, Stream stream) {
  constexpr std::string_view op = "quantize_4bit";
  const DeviceGuard guard(args.device, op);
  const Codebook16Quantizer quantizer{.encoder = make_encoder16(*args.format),
                                      .codes = args.codes,
                                      .absmax = args.absmax,
                                      .aligned = is_aligned(args.codes, 4)};
  dispatch_float(args.x_dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    dispatch_bool(is_aligned(args.x, 16), [&](auto aligned) {
      launch_quantize_blocks(op, TensorInput<T, aligned>{static_cast<const T*>(args.x)}, args.n, args.block_size,
                             quantizer, stream);
    });
  });
}

}  // namespace qbits::cuda
