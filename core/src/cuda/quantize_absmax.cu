#include <cooperative_groups.h>

#include "cuda/codebook256.cuh"
#include "ops/absmax.h"

namespace qbits::cuda {
namespace {

// absmax - offset, the offset being read on the device.
template <bool kAligned>
struct CenteredInput {
  struct Values {
    Run<float, kRun> absmax;
    float offset;
    int valid;
    __device__ float operator[](int i) const { return i < valid ? __fsub_rn(absmax[i], offset) : 0.0F; }
  };
  static constexpr int kRuns = 1;
  static constexpr bool kVectors = kAligned;

  const float* absmax;
  const float* offset;

  __device__ Values load(int64_t i) const { return {load_run<kRun>(absmax, i), *offset, kRun}; }
  __device__ Values load(int64_t i, int valid) const { return {load_run<kRun>(absmax, i, valid), *offset, valid}; }
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

// The sum of a chunk in the order ops/absmax.h fixes, in thread 0.
__device__ double chunk_sum(const float* absmax, int64_t n, int64_t chunk, double (&lanes)[kMeanLanes]) {
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t begin = chunk * kMeanChunk;
  const int64_t end = min(begin + kMeanChunk, n);
  double sum = 0.0;
#pragma unroll 32
  for (int64_t i = begin + lane; i < end; i += kMeanLanes) sum = __dadd_rn(sum, static_cast<double>(absmax[i]));
  __syncthreads();
  lanes[lane] = sum;
  for (int half = kMeanLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) lanes[lane] = sum = __dadd_rn(lanes[lane], lanes[lane + half]);
  }
  return sum;
}

// The sum of all chunks in ascending order, in thread 0.
__device__ double sum_of_chunks(const float* scratch, int64_t chunks, double (&tile)[kMeanLanes]) {
  const int lane = static_cast<int>(threadIdx.x);
  double sum = 0.0;
  for (int64_t first = 0; first < chunks; first += kMeanLanes) {
    __syncthreads();
    if (first + lane < chunks) tile[lane] = get_sum(scratch, first + lane);
    __syncthreads();
    const int count = lane > 0 ? 0 : static_cast<int>(min(chunks - first, int64_t{kMeanLanes}));
#pragma unroll 16
    for (int i = 0; i < count; ++i) sum = __dadd_rn(sum, tile[i]);
  }
  return sum;
}

template <bool kAligned>
__global__ void __launch_bounds__(kQuantizeThreads, kQuantizeBlocks)
    center_and_quantize(const float* absmax, int64_t n, float* offset,
                        const __grid_constant__ Codebook256Quantizer quantizer) {
  static_assert(kQuantizeThreads == kMeanLanes);
  __shared__ Codebook256Quantizer::Shared shared;
  __shared__ double lanes[kMeanLanes];
  quantizer.prepare(shared);
  const auto grid = cooperative_groups::this_grid();
  const int64_t chunks = (n + kMeanChunk - 1) / kMeanChunk;
  double sum = 0.0;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    sum = chunk_sum(absmax, n, chunk, lanes);
    if (chunks > 1 && threadIdx.x == 0) put_sum(quantizer.absmax, chunk, sum);
  }
  grid.sync();
  if (blockIdx.x == 0) {
    if (chunks > 1) sum = sum_of_chunks(quantizer.absmax, chunks, lanes);
    if (threadIdx.x == 0) *offset = from_float<float>(__double2float_rn(__ddiv_rn(sum, static_cast<double>(n))));
  }
  grid.sync();
  const CenteredInput<kAligned> input{absmax, offset};
  TileQuantizer<false, CenteredInput<kAligned>, Codebook256Quantizer>(input, n, exact_log2(kNestedBlockSize), quantizer,
                                                                      shared)
      .run();
}

}  // namespace

void quantize_absmax(const QuantizeAbsmaxArgs& args, Stream stream) {
  constexpr std::string_view op = "quantize_absmax";
  const DeviceGuard guard(args.device, op);
  const Codebook256Quantizer quantizer{.code = args.nested_code, .codes = args.values, .absmax = args.nested_absmax};
  dispatch_bool(is_aligned(args.absmax, 16) && is_aligned(args.values, sizeof(PackedRun<8>)), [&](auto aligned) {
    auto* kernel = center_and_quantize<aligned>;
    const int64_t blocks = std::min(ceil_div(args.n, kQuantizeRow), resident_blocks(kernel, kQuantizeThreads, 0, op));
    launch(op, kernel, {.blocks = blocks, .threads = kQuantizeThreads, .cooperative = true}, stream, args.absmax,
           args.n, args.offset, quantizer);
  });
}

}  // namespace qbits::cuda
