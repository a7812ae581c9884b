#include "cuda/dequantize_blocks.cuh"
#include "ops/affine.h"

namespace qbits::cuda {
namespace {

inline constexpr int kThreads = 256;

// Groups that end inside a row's vectors: one element a thread.
template <class T, class Decoder>
__global__ void __launch_bounds__(kThreads) dequantize_rows(Decoder decoder, const uint8_t* codes, int64_t n,
                                                            int64_t cols, int64_t group_size, int64_t groups, T* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const int64_t row = i / cols;
  const auto scale = decoder.load(row * groups + (i - row * cols) / group_size);
  out[i] = from_float<T>(Decoder::value({}, scale, load_code<Decoder::kBits>(codes, i)));
}

template <class T, class Decoder>
void run(const DequantizeAffineArgs& args, const Decoder& decoder, Stream stream) {
  constexpr std::string_view op = "dequantize_affine";
  const int64_t n = args.rows * args.cols;
  T* out = static_cast<T*>(args.out);
  if (args.cols % args.group_size == 0 && args.group_size % 8 == 0) {
    launch_dequantize_blocks(op, decoder, args.codes, args.group_size, n, out, stream);
    return;
  }
  launch(op, dequantize_rows<T, Decoder>, {.blocks = ceil_div(n, kThreads), .threads = kThreads}, stream, decoder,
         args.codes, n, args.cols, args.group_size, ceil_div(args.cols, args.group_size), out);
}

}  // namespace

void dequantize_affine(const DequantizeAffineArgs& args, Stream stream) {
  constexpr std::string_view op = "dequantize_affine";
  const DeviceGuard guard(args.device, op);
  dispatch_float(args.out_dtype, op, [&](auto out_tag) {
    dispatch_float(args.scale_dtype, op, [&](auto scale_tag) {
      using T = typename decltype(out_tag)::type;
      using S = typename decltype(scale_tag)::type;
      const S* scales = static_cast<const S*>(args.scales);
      const S* zeros = static_cast<const S*>(args.zeros);
      if (args.format->is_4bit()) {
        run<T>(args, AffineDecoder<4, S>{scales, zeros}, stream);
      } else {
        run<T>(args, AffineDecoder<8, S>{scales, zeros}, stream);
      }
    });
  });
}

}  // namespace qbits::cuda
