#include "cuda/device.h"
#include "cuda/igemm_copy.cuh"
#include "cuda/igemm_kernels.h"
#include "cuda/igemm_mma.cuh"
#include "cuda/launch.h"

namespace qbits::cuda {
namespace {

constexpr std::string_view kOp = "igemm";

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
    const IgemmCopyArgs args{
        .from = codes, .to = static_cast<int8_t*>(workspace), .batch = batch, .rows = rows, .k = k, .pitch = pitch()};
    if (k_major) {
      const int64_t pieces = batch * rows * (pitch() / 16);
      launch(kOp, igemm_copy_kernel,
             {.blocks = ceil_div(pieces, int64_t{kIgemmCopyThreads} * kIgemmCopyPieces), .threads = kIgemmCopyThreads},
             stream, args);
    } else {
      constexpr int64_t kTile = kIgemmTransposeTile;
      launch(kOp, igemm_transpose_kernel,
             {.blocks = batch * ceil_div(rows, kTile) * ceil_div(pitch(), kTile), .threads = kIgemmCopyThreads}, stream,
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
