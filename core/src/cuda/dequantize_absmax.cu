#include "cuda/dequantize_blocks.cuh"
#include "ops/absmax.h"

namespace qbits::cuda {
namespace {

// Codes of a block times its absmax, plus the mean: two rounded operations.
struct NestedAbsmaxDecoder {
  using Shared = Codebook256Decoder::Shared;
  struct Scale {
    float absmax;
    float offset;
  };
  using Raw = Scale;
  static constexpr int kBits = 8;

  Codebook256Decoder codebook;
  const float* offset;

  __device__ void prepare(Shared& shared) const { codebook.prepare(shared); }
  __device__ Raw load(int64_t block) const { return {codebook.load(block), __ldg(offset)}; }
  __device__ static Scale scale(const Shared&, Raw raw) { return raw; }
  __device__ static bool is_finite(Scale s) { return isfinite(s.absmax) && isfinite(s.offset); }
  __device__ static float value(const Shared& shared, Scale s, uint32_t code) {
    return __fadd_rn(Codebook256Decoder::value(shared, s.absmax, code), s.offset);
  }
};

}  // namespace

void dequantize_absmax(const DequantizeAbsmaxArgs& args, Stream stream) {
  constexpr std::string_view op = "dequantize_absmax";
  const DeviceGuard guard(args.device, op);
  const NestedAbsmaxDecoder decoder{.codebook = {args.absmax.nested_code, args.absmax.nested_absmax},
                                    .offset = args.absmax.offset};
  launch_dequantize_blocks(op, decoder, static_cast<const uint8_t*>(args.absmax.values), kNestedBlockSize, args.n,
                           args.out, stream);
}

}  // namespace qbits::cuda
