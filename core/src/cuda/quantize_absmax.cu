#include "cuda/codebook256.cuh"
#include "ops/absmax.h"

namespace qbits::cuda {
namespace {

// absmax - offset, the offset being read on the device.
template <bool kAligned>
struct CenteredInput {
  struct Values {
    Eight<float> absmax;
    float offset;
    int valid;
    __device__ float operator[](int i) const { return i < valid ? __fsub_rn(absmax[i], offset) : 0.0F; }
  };
  static constexpr int kUnroll = 1;

  const float* absmax;
  const float* offset;

  __device__ Values load(int64_t i, int64_t n) const {
    return {load_eight<kAligned>(absmax, i, n), *offset, static_cast<int>(i + 8 <= n ? 8 : (i < n ? n - i : 0))};
  }
};

// Chunk sums wait in the buffer of nested_absmax, which is large enough as soon as there are two chunks but
// only aligned to 4 bytes.
__device__ void put_sum(float* scratch, int64_t chunk, double sum) {
  scratch[2 * chunk] = __int_as_float(__double2hiint(sum));
  scratch[2 * chunk + 1] = __int_as_float(__double2loint(sum));
}

__device__ double get_sum(const float* scratch, int64_t chunk) {
  return __hiloint2double(__float_as_int(scratch[2 * chunk]), __float_as_int(scratch[2 * chunk + 1]));
}

__device__ void write_mean(double sum, int64_t n, float* offset) {
  *offset = from_float<float>(__double2float_rn(__ddiv_rn(sum, static_cast<double>(n))));
}

// One thread block a chunk, in the order ops/absmax.h fixes.
__global__ void __launch_bounds__(kMeanLanes)
    sum_chunks(const float* absmax, int64_t n, float* scratch, float* offset) {
  __shared__ double lanes[kMeanLanes];
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kMeanChunk;
  const int64_t end = min(begin + kMeanChunk, n);
  double sum = 0.0;
#pragma unroll 16
  for (int64_t i = begin + lane; i < end; i += kMeanLanes) sum = __dadd_rn(sum, static_cast<double>(absmax[i]));
  lanes[lane] = sum;
  for (int half = kMeanLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) lanes[lane] = __dadd_rn(lanes[lane], lanes[lane + half]);
  }
  if (lane > 0) return;
  if (gridDim.x == 1) {
    write_mean(lanes[0], n, offset);
  } else {
    put_sum(scratch, blockIdx.x, lanes[0]);
  }
}

__global__ void __launch_bounds__(kMeanLanes)
    mean_of_chunks(const float* scratch, int64_t chunks, int64_t n, float* offset) {
  __shared__ double tile[kMeanLanes];
  const int lane = static_cast<int>(threadIdx.x);
  double sum = 0.0;
  for (int64_t first = 0; first < chunks; first += kMeanLanes) {
    __syncthreads();
    if (first + lane < chunks) tile[lane] = get_sum(scratch, first + lane);
    __syncthreads();
    if (lane == 0) {
      const int count = static_cast<int>(min(static_cast<int64_t>(kMeanLanes), chunks - first));
      for (int i = 0; i < count; ++i) sum = __dadd_rn(sum, tile[i]);
    }
  }
  if (lane == 0) write_mean(sum, n, offset);
}

}  // namespace

void quantize_absmax(const QuantizeAbsmaxArgs& args, Stream stream) {
  constexpr std::string_view op = "quantize_absmax";
  const DeviceGuard guard(args.device, op);
  const int64_t chunks = ceil_div(args.n, kMeanChunk);
  launch(op, sum_chunks, {.blocks = chunks, .threads = kMeanLanes}, stream, args.absmax, args.n, args.nested_absmax,
         args.offset);
  if (chunks > 1) {
    launch(op, mean_of_chunks, {.blocks = 1, .threads = kMeanLanes}, stream, args.nested_absmax, chunks, args.n,
           args.offset);
  }
  const Codebook256Quantizer quantizer{.code = args.nested_code,
                                       .codes = args.values,
                                       .absmax = args.nested_absmax,
                                       .aligned = is_aligned(args.values, 8)};
  dispatch_bool(is_aligned(args.absmax, 16), [&](auto aligned) {
    launch_quantize_blocks(op, CenteredInput<aligned>{args.absmax, args.offset}, args.n, kNestedBlockSize, quantizer,
                           stream);
  });
}

}  // namespace qbits::cuda
