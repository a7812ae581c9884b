#include "cuda/device.h"
#include "cuda/igemm_kernels.h"
#include "cuda/igemm_mma.cuh"
#include "cuda/int8_words.cuh"
#include "cuda/launch.h"

// igemm by mma.sync, whose kernels read operands K-major, in rows that begin at 16 bytes and are 0 behind the last
// element: others are copied first.

namespace qbits::cuda {
namespace {

constexpr std::string_view kOp = "igemm";

struct CopyArgs {
  const int8_t* from;  // [batch, rows, k], or transposed [batch, k, rows]
  int8_t* to;          // [batch, rows, pitch]
  int64_t batch;
  int64_t rows;
  int64_t k;
  int64_t pitch;  // a multiple of 16
};

constexpr int kCopyThreads = 256;
constexpr int kCopyPieces = 4;  // of 16 bytes, a thread's

__global__ void __launch_bounds__(kCopyThreads) copy_rows(const __grid_constant__ CopyArgs args) {
  const int64_t pieces = args.pitch / 16;  // of a row
  const int64_t all = args.batch * args.rows * pieces;
  const int8_t* const end = args.from + args.batch * args.rows * args.k;
  const int64_t first = int64_t{blockIdx.x} * (kCopyThreads * kCopyPieces) + threadIdx.x;
  RawCodes16 raw[kCopyPieces];
#pragma unroll
  for (int j = 0; j < kCopyPieces; ++j) {
    const int64_t piece = first + j * kCopyThreads;
    if (piece < all) raw[j].load(args.from + piece / pieces * args.k + piece % pieces * 16, end);
  }
#pragma unroll
  for (int j = 0; j < kCopyPieces; ++j) {
    const int64_t piece = first + j * kCopyThreads;
    if (piece >= all) continue;
    const int64_t k = piece % pieces * 16;
    const uint4 v = raw[j].shifted(lead_of(args.from + piece / pieces * args.k + k));
    uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const int64_t left = args.k - k - w * 4;
      if (left < 4) words[w] = left <= 0 ? 0 : words[w] & ((1U << left * 8) - 1);
    }
    *reinterpret_cast<uint4*>(args.to + piece * 16) = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

constexpr int kTransposeTile = 128;  // rows, and of k

// A word of shared memory for four elements of k, numbered in a tile, of a row. Permuted so that a warp stores to all
// banks at once, eight rows four apart by four words, and eight threads read a row whole.
__host__ __device__ constexpr int transposed_place(int row, int word) {
  return row * (kTransposeTile / 4) + ((word / 4 ^ (row / 4 & 7)) * 4 | word % 4);
}

__global__ void __launch_bounds__(kCopyThreads) transpose_rows(const __grid_constant__ CopyArgs args) {
  constexpr int kTile = kTransposeTile;
  constexpr int kTimes = kTile * kTile / 16 / kCopyThreads;  // blocks of 4 x 4, and runs of 16, of a thread
  __shared__ __align__(16) uint32_t shared[kTile * kTile / 4];
  const int64_t tiles_k = ceil_div(args.pitch, int64_t{kTile});
  const int64_t tiles = ceil_div(args.rows, int64_t{kTile}) * tiles_k;
  const int64_t batch = blockIdx.x / tiles;
  const int64_t row0 = blockIdx.x % tiles / tiles_k * kTile;
  const int64_t k0 = blockIdx.x % tiles_k * kTile;
  const int8_t* const end = args.from + args.batch * args.rows * args.k;
  const int tid = static_cast<int>(threadIdx.x);
  const int word = tid / 32 * 4 + tid % 32 / 8;
  uint32_t block[kTimes][4];
#pragma unroll
  for (int j = 0; j < kTimes; ++j) {
    const int64_t row = row0 + (j * 8 + tid % 8) * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t k = k0 + word * 4 + i;
      const bool valid = row < args.rows && k < args.k;
      block[j][i] = valid ? load_codes4(args.from + (batch * args.k + k) * args.rows + row, end) : 0;
    }
  }
#pragma unroll
  for (int j = 0; j < kTimes; ++j) {
    const uint32_t (&b)[4] = block[j];
    const uint32_t low[2] = {__byte_perm(b[0], b[1], 0x5140), __byte_perm(b[2], b[3], 0x5140)};
    const uint32_t high[2] = {__byte_perm(b[0], b[1], 0x7362), __byte_perm(b[2], b[3], 0x7362)};
    const int row = (j * 8 + tid % 8) * 4;
    shared[transposed_place(row, word)] = __byte_perm(low[0], low[1], 0x5410);
    shared[transposed_place(row + 1, word)] = __byte_perm(low[0], low[1], 0x7632);
    shared[transposed_place(row + 2, word)] = __byte_perm(high[0], high[1], 0x5410);
    shared[transposed_place(row + 3, word)] = __byte_perm(high[0], high[1], 0x7632);
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < kTimes; ++j) {
    const int row = (tid + j * kCopyThreads) / 8;
    const int run = tid % 8;
    if (row0 + row >= args.rows || k0 + run * 16 >= args.pitch) continue;
    *reinterpret_cast<uint4*>(args.to + (batch * args.rows + row0 + row) * args.pitch + k0 + run * 16) =
        *reinterpret_cast<const uint4*>(shared + transposed_place(row, run * 4));
  }
}

// An operand, and its copy in the workspace where the kernel could not read it as it is.
struct Operand {
  const int8_t* codes;
  int64_t batch;
  int64_t rows;
  int64_t k;
  bool k_major;

  bool copied() const { return k > 0 && !(k_major && k % 16 == 0 && is_aligned(codes, 16)); }
  int64_t pitch() const { return ceil_div(k, int64_t{16}) * 16; }
  int64_t copy_bytes() const { return copied() ? batch * rows * pitch() : 0; }

  // Where the kernel reads it.
  const int8_t* prepare(void* workspace, Stream stream) const {
    if (!copied()) return codes;
    const CopyArgs args{
        .from = codes, .to = static_cast<int8_t*>(workspace), .batch = batch, .rows = rows, .k = k, .pitch = pitch()};
    if (k_major) {
      const int64_t pieces = batch * rows * (pitch() / 16);
      launch(kOp, copy_rows, {.blocks = ceil_div(pieces, int64_t{kCopyThreads} * kCopyPieces), .threads = kCopyThreads},
             stream, args);
    } else {
      constexpr int64_t kTile = kTransposeTile;
      launch(kOp, transpose_rows,
             {.blocks = batch * ceil_div(rows, kTile) * ceil_div(pitch(), kTile), .threads = kCopyThreads}, stream,
             args);
    }
    return args.to;
  }
};

// A matrix of one row is its own transpose.
Operand operand_a(const IgemmArgs& args) {
  return {args.a, args.batch, args.m, args.k, !args.transpose_a || args.m == 1};
}
Operand operand_b(const IgemmArgs& args) {
  return {args.b, args.batch, args.n, args.k, args.transpose_b || args.n == 1};
}

}  // namespace

Int8MmaProblem problem_of(const IgemmArgs& args) {
  const DeviceFacts& facts = device_facts(args.device, kOp);
  return {.batch = args.batch,
          .n = args.n,
          .k = args.k,
          .m = args.m,
          .compute_capability = facts.compute_capability,
          .sm_count = facts.sm_count};
}

void run(const IgemmArgs& args, const Int8MmaPlan& plan, Stream stream) {
  const Operand a = operand_a(args);
  const Operand b = operand_b(args);
  uint8_t* const workspace = static_cast<uint8_t*>(args.workspace);
  const IgemmMmaArgs kernel_args{.operands = {.x = a.prepare(workspace, stream),
                                              .weight = b.prepare(workspace + a.copy_bytes(), stream),
                                              .x_pitch = a.pitch(),
                                              .weight_pitch = b.pitch(),
                                              .m = args.m,
                                              .n = args.n,
                                              .k = args.k,
                                              .stages = plan.stages},
                                 .out = args.out,
                                 .whole_out = args.n % 4 == 0 && is_aligned(args.out, 16)};
  plan.isa == MmaIsa::Sm75 ? launch_igemm_mma<MmaIsa::Sm75>(kernel_args, plan, stream)
                           : launch_igemm_mma<MmaIsa::Sm80>(kernel_args, plan, stream);
}

int64_t igemm_workspace(const IgemmArgs& args) { return operand_a(args).copy_bytes() + operand_b(args).copy_bytes(); }

void igemm(const IgemmArgs& args, Stream stream) {
  const DeviceGuard guard(args.device, kOp);
  if (args.k == 0) {
    const size_t bytes = static_cast<size_t>(args.batch * args.m * args.n) * sizeof(int32_t);
    return check(cudaMemsetAsync(args.out, 0, bytes, native(stream)), kOp);
  }
  run(args, int8_mma_plan(kOp, problem_of(args)), stream);
}

}  // namespace qbits::cuda
