#include "cuda/affine_group.cuh"

namespace qbits::cuda {
namespace {

// Groups that tile the flattened tensor, through quantize_blocks.
template <class S, int kBits>
struct AffineQuantizer {
  struct Shared {};
  using Block = AffineGroup<S, kBits>;
  static constexpr int kMaxima = 2;

  uint8_t* codes;
  S* scales;
  S* zeros;

  __device__ static void prepare(Shared&) {}
  template <class Values>
  __device__ static void observe(const Values& x, int (&maxima)[2]) {
    const Range range = range_of(x);
    maxima[0] = range.top;
    maxima[1] = range.bottom;
  }
  __device__ static Block finish(const Shared&, const int (&maxima)[2]) { return Block(Range{maxima[0], maxima[1]}); }
  __device__ void write_scale(const Block& group, int64_t index) const {
    scales[index] = from_float<S>(group.scale);
    zeros[index] = from_float<S>(group.zero);
  }
  template <class Values>
  __device__ static PackedRun<kBits> encode(const Shared&, const Block& group, const Values& x) {
    return group.encode(x);
  }
};

struct GroupShape {
  int64_t rows;
  int64_t cols;
  int64_t group_size;
  int64_t groups;  // a row
};

struct Group {
  int64_t start;
  int64_t count;
};

__device__ Group group_at(const GroupShape& shape, int64_t index) {
  const int64_t row = index / shape.groups;
  const int64_t col = (index - row * shape.groups) * shape.group_size;
  return {row * shape.cols + col, min(shape.group_size, shape.cols - col)};
}

inline constexpr int kThreads = 256;

// The range of a team of consecutive threads, known to all of them: 1 to 32 lanes of a warp, or the whole block.
template <bool kWide>
__device__ Range range_of_team(Range range, int lanes) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    if (!kWide && offset == lanes) break;
    range.top = max(range.top, __shfl_xor_sync(0xffffffffU, range.top, offset));
    range.bottom = max(range.bottom, __shfl_xor_sync(0xffffffffU, range.bottom, offset));
  }
  if constexpr (kWide) {
    __shared__ Range warps[kThreads / 32];
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = range;
    __syncthreads();
#pragma unroll
    for (const Range& other : warps) range = {max(range.top, other.top), max(range.bottom, other.bottom)};
  }
  return range;
}

// Groups of any number of runs: a team reads a group twice, the second time from a cache.
template <class T, class S, int kBits, bool kWide>
__global__ void __launch_bounds__(kThreads)
    affine_runs(const T* x, GroupShape shape, int lanes, const AffineQuantizer<S, kBits> quantizer) {
  const int thread = static_cast<int>(threadIdx.x);
  const int team = kWide ? kThreads : lanes;
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * kThreads + thread) / team;
  const bool exists = index < shape.rows * shape.groups;
  const Group group = exists ? group_at(shape, index) : Group{0, 0};
  const int64_t first = thread % team * kRun;
  const int64_t step = team * kRun;
  Range range{0, 0};
  const auto see = [&](const Run<T, kRun>& run) {
    const Range its = range_of(run);
    range = {max(range.top, its.top), max(range.bottom, its.bottom)};
  };
  for (int64_t i = first; i < group.count; i += step) see(load_run<kRun>(x, group.start + i));
  const AffineGroup<S, kBits> scale(range_of_team<kWide>(range, lanes));
  if (exists && first == 0) quantizer.write_scale(scale, index);
  for (int64_t i = first; i < group.count; i += step) {
    scale.encode(load_run<kRun>(x, group.start + i)).store(quantizer.codes, group.start + i);
  }
}

// Groups and rows of any length: one pass for scales (a warp a group), one for codes (a thread a byte, whose two
// nibbles may belong to two groups or two rows).
template <class T, class S, int kBits>
__global__ void __launch_bounds__(kThreads)
    affine_scales(const T* x, GroupShape shape, const AffineQuantizer<S, kBits> quantizer) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (index >= shape.rows * shape.groups) return;
  const Group group = group_at(shape, index);
  Range range{0, 0};
  for (int64_t i = threadIdx.x % 32; i < group.count; i += 32) widen(range, to_float(x[group.start + i]));
  range = range_of_team<false>(range, 32);
  if (threadIdx.x % 32 == 0) quantizer.write_scale(AffineGroup<S, kBits>(range), index);
}

template <class T, class S, int kBits>
__global__ void __launch_bounds__(kThreads)
    affine_codes(const T* x, GroupShape shape, const AffineQuantizer<S, kBits> quantizer) {
  constexpr int kPerByte = 8 / kBits;
  const int64_t n = shape.rows * shape.cols;
  const int64_t byte = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (byte * kPerByte >= n) return;
  uint32_t out = 0;
#pragma unroll
  for (int k = 0; k < kPerByte; ++k) {
    const int64_t i = byte * kPerByte + k;
    uint32_t code = 0;
    if (i < n) {
      const int64_t row = i / shape.cols;
      const int64_t index = row * shape.groups + (i - row * shape.cols) / shape.group_size;
      code = affine_code<kBits>(to_float(quantizer.scales[index]), to_float(quantizer.zeros[index]), to_float(x[i]));
    }
    out = out << kBits | code;
  }
  quantizer.codes[byte] = static_cast<uint8_t>(out);
}

template <class T, class S, int kBits>
void run(const QuantizeAffineArgs& args, Stream stream) {
  constexpr std::string_view op = "quantize_affine";
  const T* x = static_cast<const T*>(args.x);
  const int64_t n = args.rows * args.cols;
  const GroupShape shape{.rows = args.rows,
                         .cols = args.cols,
                         .group_size = args.group_size,
                         .groups = ceil_div(args.cols, args.group_size)};
  const int64_t groups = shape.rows * shape.groups;
  const AffineQuantizer<S, kBits> quantizer{
      .codes = args.codes, .scales = static_cast<S*>(args.scales), .zeros = static_cast<S*>(args.zeros)};
  const bool aligned = is_aligned(x, 16) && is_aligned(args.codes, sizeof(PackedRun<kBits>));
  const int log2_group = exact_log2(args.group_size);
  if (args.cols % args.group_size == 0 && log2_group >= 4 && log2_group <= 12 && aligned) {
    launch_quantize_blocks(op, TensorInput<T, true>{x}, n, args.group_size, quantizer, stream);
  } else if (args.cols % kRun == 0 && args.group_size % kRun == 0 && aligned) {
    const int64_t runs = std::min(args.cols, args.group_size) / kRun;
    dispatch_bool(runs > 64, [&](auto wide) {
      const int lanes =
          wide ? kThreads : static_cast<int>(std::bit_ceil(static_cast<uint64_t>(std::min<int64_t>(runs, 32))));
      launch(op, affine_runs<T, S, kBits, wide>, {.blocks = ceil_div(groups, kThreads / lanes), .threads = kThreads},
             stream, x, shape, lanes, quantizer);
    });
  } else {
    launch(op, affine_scales<T, S, kBits>, {.blocks = ceil_div(groups, kThreads / 32), .threads = kThreads}, stream, x,
           shape, quantizer);
    launch(op, affine_codes<T, S, kBits>, {.blocks = ceil_div(ceil_div(n * kBits, 8), kThreads), .threads = kThreads},
           stream, x, shape, quantizer);
  }
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
