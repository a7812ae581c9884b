#include <algorithm>

#include "cuda/device.h"
#include "cuda/launch.h"
#include "cuda/linear_4bit_ptx.cuh"
#include "cuda/quantize_int8_rowwise.cuh"
#include "ops/int8.h"

// Two launches over strips of columns: the first finds the largest magnitudes of chunks of rows, each in memory of its
// own, so that none need be cleared before; the second makes scales of them and encodes.

namespace qbits::cuda {
namespace {

using rowwise::finite_scale;
using rowwise::kRun;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kStrip = 32 * kRun;  // columns of a warp, and of a block
constexpr int kBatch = 4;          // rows of a warp, loaded together
constexpr int kEncodeRows = 128;   // of a block
static_assert(kStrip == kThreads);

template <class T>
struct ColwiseArgs {
  const T* x;
  int64_t rows;
  int64_t cols;
  float limit;  // the threshold; NaN without one, from which on nothing is
  int8_t* codes;
  float* scales;
  uint32_t* tops;  // [chunks, strips * kStrip]: bits of the largest inlying magnitude
  int64_t strips;
  int64_t chunk_rows;
  int chunks;
};

// Run i.. of a row; 0 behind its end and outside of the matrix.
template <bool kAligned, class T>
__device__ Run<T, kRun> load_run_of(const ColwiseArgs<T>& args, int64_t row, int64_t end, int64_t i) {
  if (row >= end || i >= args.cols) return {};
  const T* const x = args.x + row * args.cols;
  if constexpr (kAligned) return load_run<kRun>(x, i);
  return load_run<kRun>(x, i, static_cast<int>(min(args.cols - i, int64_t{kRun})));
}

// Largest inlying magnitudes of the columns of a run: of pairs for types of 16 bits.
template <class T>
class Tops {
 public:
  __device__ explicit Tops(float limit) {
    if constexpr (sizeof(T) == 2) {
      // |x| from the threshold on is |x| from the next number of T on.
      if constexpr (std::is_same_v<T, __half>) {
        limit_ = __half2half2(__float2half_ru(limit));
      } else {
        limit_ = __bfloat162bfloat162(__float2bfloat16_ru(limit));
      }
    } else {
      limit_ = limit;
    }
  }

  __device__ void add(const Run<T, kRun>& run) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      if constexpr (sizeof(T) == 2) {
        const Pair<T> magnitude = __habs2(run.pair(k));
        const uint32_t inlying = reinterpret_cast<const uint32_t&>(magnitude) & ~__hge2_mask(magnitude, limit_);
        const Pair<T> top =
            __hmax2_nan(reinterpret_cast<const Pair<T>&>(words_[k]), reinterpret_cast<const Pair<T>&>(inlying));
        words_[k] = reinterpret_cast<const uint32_t&>(top);
      } else {
        const float magnitude = fabsf(run[k]);
        if (!(magnitude >= limit_)) words_[k] = max(words_[k], __float_as_uint(magnitude));
      }
    }
  }

  // Bits of the float32 of column k.
  __device__ uint32_t operator[](int k) const {
    Run<T, kRun> run;
#pragma unroll
    for (int w = 0; w < kWords; ++w) run.words[w] = words_[w];
    return __float_as_uint(run[k]);
  }

 private:
  static constexpr int kWords = kRun * sizeof(T) / 4;
  std::conditional_t<sizeof(T) == 2, Pair<T>, float> limit_;
  uint32_t words_[kWords] = {};
};

// Grid: strips, then chunks of rows.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) find_tops(const __grid_constant__ ColwiseArgs<T> args) {
  __shared__ uint32_t shared[kWarps][kStrip];
  let_next_kernel_start();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t strip = blockIdx.x % args.strips;
  const int64_t chunk = blockIdx.x / args.strips;
  const int64_t i = strip * kStrip + lane * kRun;
  const int64_t end = min((chunk + 1) * args.chunk_rows, args.rows);
  Tops<T> tops(args.limit);
  for (int64_t first = chunk * args.chunk_rows + warp; first < end; first += kBatch * kWarps) {
    Run<T, kRun> runs[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) runs[b] = load_run_of<kAligned>(args, first + b * kWarps, end, i);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) tops.add(runs[b]);
  }
#pragma unroll
  for (int k = 0; k < kRun; ++k) shared[warp][lane * kRun + k] = tops[k];
  __syncthreads();
  uint32_t top = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) top = max(top, shared[w][threadIdx.x]);
  args.tops[chunk * args.strips * kStrip + strip * kStrip + threadIdx.x] = top;
}

// Grid: strips, then kEncodeRows rows each. x itself, older than find_tops, is not waited for.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kThreads) encode_columns(const __grid_constant__ ColwiseArgs<T> args) {
  __shared__ float scales[kStrip];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t strip = blockIdx.x % args.strips;
  const int64_t row0 = blockIdx.x / args.strips * kEncodeRows;
  const int64_t end = min(row0 + kEncodeRows, args.rows);
  const int64_t i = strip * kStrip + lane * kRun;
  Run<T, kRun> runs[kBatch];
  const auto load = [&](int64_t first) {
#pragma unroll
    for (int b = 0; b < kBatch; ++b) runs[b] = load_run_of<kAligned>(args, first + b * kWarps, end, i);
  };
  load(row0 + warp);
  wait_for_kernels_before();
  {
    const int64_t column = strip * kStrip + threadIdx.x;
    uint32_t top = 0;
    for (int c = 0; c < args.chunks; ++c) top = max(top, args.tops[c * args.strips * kStrip + column]);
    scales[threadIdx.x] = finite_scale(top);
    if (row0 == 0 && column < args.cols) args.scales[column] = scales[threadIdx.x];
  }
  __syncthreads();
  float scale[kRun];
#pragma unroll
  for (int k = 0; k < kRun; ++k) scale[k] = scales[lane * kRun + k];
  const Quotient quotients[kRun] = {Quotient(scale[0]), Quotient(scale[1]), Quotient(scale[2]), Quotient(scale[3]),
                                    Quotient(scale[4]), Quotient(scale[5]), Quotient(scale[6]), Quotient(scale[7])};
  uint32_t coded = 0;  // columns whose scale is neither 0 nor NaN
#pragma unroll
  for (int k = 0; k < kRun; ++k) coded |= uint32_t{scale[k] > 0.0F} << k;
  for (int64_t first = row0 + warp; first < end; first += kBatch * kWarps) {
    if (first != row0 + warp) load(first);
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int64_t row = first + b * kWarps;
      if (row >= end || i >= args.cols) continue;
      uint32_t codes[kRun];
#pragma unroll
      for (int k = 0; k < kRun; ++k) {
        const float x = runs[b][k];
        // As in the row-wise quantizer; an outlier's quotient is arbitrary.
        const float sum = __fmaf_rn(quotients[k](x * quotients[k].factor()), 127.0F * 0x1p-32F, 0x1.8p23F);
        const bool is_coded = (coded >> k & 1) != 0 && !(fabsf(x) >= args.limit);
        codes[k] = is_coded ? __float_as_uint(sum) & 0xff : 0;
      }
      int8_t* const to = args.codes + row * args.cols + i;
      if constexpr (kAligned) {
        const auto word = [&](int k) { return codes[k] | codes[k + 1] << 8 | codes[k + 2] << 16 | codes[k + 3] << 24; };
        *reinterpret_cast<uint2*>(to) = make_uint2(word(0), word(4));
      } else {
#pragma unroll
        for (int k = 0; k < kRun; ++k) {
          if (i + k < args.cols) to[k] = static_cast<int8_t>(codes[k]);
        }
      }
    }
  }
}

int64_t strips_of(int64_t cols) { return ceil_div(cols, int64_t{kStrip}); }

// Enough thread blocks to fill a device, but few enough for each block of the second launch to look at.
int64_t chunks_of(int64_t rows, int64_t strips) {
  return std::clamp<int64_t>(rows / 64, 1, std::clamp<int64_t>(1024 / std::max<int64_t>(strips, 1), 16, 64));
}

template <class T>
void run(const QuantizeInt8ColwiseArgs& args, Stream stream) {
  constexpr std::string_view op = "quantize_int8_colwise";
  const int64_t strips = strips_of(args.cols);
  const int64_t chunks = chunks_of(args.rows, strips);
  const ColwiseArgs<T> kernel_args{.x = static_cast<const T*>(args.x),
                                   .rows = args.rows,
                                   .cols = args.cols,
                                   .limit = args.threshold > 0 ? args.threshold : __builtin_nanf(""),
                                   .codes = args.codes,
                                   .scales = args.scales,
                                   .tops = static_cast<uint32_t*>(args.workspace),
                                   .strips = strips,
                                   .chunk_rows = ceil_div(args.rows, chunks),
                                   .chunks = static_cast<int>(chunks)};
  const bool aligned = args.cols % kRun == 0 && is_aligned(args.x, 16) && is_aligned(args.codes, kRun);
  dispatch_bool(aligned, [&](auto is_aligned) {
    launch(op, find_tops<T, is_aligned>, {.blocks = strips * chunks, .threads = kThreads}, stream, kernel_args);
    launch(op, encode_columns<T, is_aligned>,
           {.blocks = strips * std::max<int64_t>(ceil_div(args.rows, int64_t{kEncodeRows}), 1),
            .threads = kThreads,
            .overlaps = device_facts(args.device, op).compute_capability >= 90},  // earlier ones know no such launch
           stream, kernel_args);
  });
}

}  // namespace

int64_t quantize_int8_colwise_workspace(int64_t rows, int64_t cols, Device) {
  const int64_t strips = strips_of(cols);
  return chunks_of(rows, strips) * strips * kStrip * static_cast<int64_t>(sizeof(uint32_t));
}

void quantize_int8_colwise(const QuantizeInt8ColwiseArgs& args, Stream stream) {
  constexpr std::string_view op = "quantize_int8_colwise";
  const DeviceGuard guard(args.device, op);
  dispatch_float(args.x_dtype, op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    run<T>(args, stream);
  });
}

}  // namespace qbits::cuda
