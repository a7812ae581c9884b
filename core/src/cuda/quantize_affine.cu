#include "cuda/quantize_blocks.cuh"
#include "ops/affine.h"

namespace qbits::cuda {
namespace {

// Scale and zero of a group from the bits of its largest and of its negated smallest value (at least +0 each),
// as ops/affine.h defines them.
struct AffineGroup {
  Quotient quotient;
  float scale;  // rounded to the dtype of the scales
  float zero;
};

template <class S, int kBits>
__device__ AffineGroup affine_group(int top, int bottom) {
  constexpr float kLevels = (1 << kBits) - 1;
  const bool finite = max(top, bottom) < static_cast<int>(kInfinityBits);
  const float width = __fadd_rn(__fdiv_rn(__int_as_float(top), kLevels), __fdiv_rn(__int_as_float(bottom), kLevels));
  const float rounded = to_float(from_float<S>(width));
  const float scale = finite && rounded < __uint_as_float(kInfinityBits) ? rounded : quiet_nan();
  const float zero = scale > 0.0F ? fminf(rintf(__fdiv_rn(__int_as_float(bottom), scale)), kLevels) : 0.0F;
  return {Quotient(scale), scale, zero};
}

template <int kBits>
__device__ uint32_t affine_code(const AffineGroup& group, float x) {
  constexpr float kLevels = (1 << kBits) - 1;
  if (!(group.scale > 0.0F)) return 0;
  const float code = __fadd_rn(rintf(group.quotient(x)), group.zero);
  return static_cast<uint32_t>(fminf(fmaxf(code, 0.0F), kLevels));
}

__device__ inline void observe_range(float x, int& top, int& bottom) {
  top = max(top, __float_as_int(x));
  bottom = max(bottom, __float_as_int(-x));
}

// Groups that tile the flattened tensor, through quantize_blocks.
template <class S, int kBits>
struct AffineQuantizer {
  struct Shared {};
  using Block = AffineGroup;
  static constexpr int kMaxima = 2;

  uint8_t* codes;
  S* scales;
  S* zeros;
  bool aligned;

  __device__ static void prepare(Shared&) {}
  __device__ static void observe(float x, int (&maxima)[2]) { observe_range(x, maxima[0], maxima[1]); }
  __device__ static Block finish(const int (&maxima)[2]) { return affine_group<S, kBits>(maxima[0], maxima[1]); }
  __device__ void write_scale(const Block& group, int64_t index) const {
    scales[index] = from_float<S>(group.scale);
    zeros[index] = from_float<S>(group.zero);
  }
  __device__ static uint32_t encode(const Shared&, const Block& group, float x) { return affine_code<kBits>(group, x); }
  __device__ void store(int64_t i, int64_t n, const uint32_t (&c)[8]) const {
    if constexpr (kBits == 4) {
      store_nibbles(codes, aligned, i, n, c);
    } else {
      store_bytes(codes, aligned, i, n, c);
    }
  }
};

// Groups of any length, rows of any length: one pass for scales (a warp a group), one for codes (a thread a
// byte, whose two nibbles may belong to two groups or two rows).
struct GroupShape {
  int64_t rows;
  int64_t cols;
  int64_t group_size;
  int64_t groups;  // a row
};

inline constexpr int kThreads = 256;

template <class T, class S, int kBits>
__global__ void __launch_bounds__(kThreads) affine_scales(const T* x, GroupShape shape, S* scales, S* zeros) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (index >= shape.rows * shape.groups) return;
  const int64_t row = index / shape.groups;
  const int64_t col = (index - row * shape.groups) * shape.group_size;
  const T* group = x + row * shape.cols + col;
  const int64_t count = min(shape.group_size, shape.cols - col);
  int top = 0;
  int bottom = 0;
  for (int64_t i = threadIdx.x % 32; i < count; i += 32) observe_range(to_float(group[i]), top, bottom);
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    top = max(top, __shfl_xor_sync(0xffffffffU, top, offset));
    bottom = max(bottom, __shfl_xor_sync(0xffffffffU, bottom, offset));
  }
  if (threadIdx.x % 32 != 0) return;
  const AffineGroup result = affine_group<S, kBits>(top, bottom);
  scales[index] = from_float<S>(result.scale);
  zeros[index] = from_float<S>(result.zero);
}

template <class T, class S, int kBits>
__global__ void __launch_bounds__(kThreads)
    affine_codes(const T* x, GroupShape shape, const S* scales, const S* zeros, uint8_t* codes) {
  constexpr int kPerByte = 8 / kBits;
  const int64_t n = shape.rows * shape.cols;
  const int64_t byte = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (byte * kPerByte >= n) return;
  uint32_t out = 0;
#pragma unroll
  for (int k = 0; k < kPerByte; ++k) {
    const int64_t i = byte * kPerByte + k;
    if (i >= n) {
      out <<= kBits;
      break;
    }
    const int64_t row = i / shape.cols;
    const int64_t index = row * shape.groups + (i - row * shape.cols) / shape.group_size;
    const float scale = to_float(scales[index]);
    const AffineGroup group{Quotient(scale), scale, to_float(zeros[index])};
    out = out << kBits | affine_code<kBits>(group, to_float(x[i]));
  }
  codes[byte] = static_cast<uint8_t>(out);
}

template <class T, class S, int kBits>
void run(const QuantizeAffineArgs& args, Stream stream) {
  constexpr std::string_view op = "quantize_affine";
  const T* x = static_cast<const T*>(args.x);
  S* scales = static_cast<S*>(args.scales);
  S* zeros = static_cast<S*>(args.zeros);
  const int64_t n = args.rows * args.cols;
  const int64_t groups = ceil_div(args.cols, args.group_size);
  const int log2_group = exact_log2(args.group_size);
  if (args.cols % args.group_size == 0 && log2_group >= 4 && log2_group <= 12 && is_aligned(x, 16)) {
    const AffineQuantizer<S, kBits> quantizer{
        .codes = args.codes, .scales = scales, .zeros = zeros, .aligned = is_aligned(args.codes, kBits)};
    launch_quantize_blocks(op, TensorInput<T, true>{x}, n, args.group_size, quantizer, stream);
    return;
  }
  const GroupShape shape{.rows = args.rows, .cols = args.cols, .group_size = args.group_size, .groups = groups};
  launch(op, affine_scales<T, S, kBits>, {.blocks = ceil_div(args.rows * groups, kThreads / 32), .threads = kThreads},
         stream, x, shape, scales, zeros);
  launch(op, affine_codes<T, S, kBits>, {.blocks = ceil_div(ceil_div(n * kBits, 8), kThreads), .threads = kThreads},
         stream, x, shape, scales, zeros, args.codes);
}

}  // namespace

void quantize_affine(const QuantizeAffineArgs& args, Stream stream) {
  constexpr std::string_view op = "quantize_affine";
  const DeviceGuard guard(args.device, op);
  dispatch_float(args.x_dtype, op, [&](auto x_tag) {
    dispatch_float(args.scale_dtype, op, [&](auto scale_tag) {
      using T = typename decltype(x_tag)::type;
      using S = typename decltype(scale_tag)::type;
      args.format->is_4bit() ? run<T, S, 4>(args, stream) : run<T, S, 8>(args, stream);
    });
  });
}

}  // namespace qbits::cuda
