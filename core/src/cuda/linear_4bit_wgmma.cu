#include <algorithm>
#include <atomic>
#include <bit>
#include <random>
#include <span>
#include <string_view>

#include "cuda/early_reads.h"
#include "cuda/linear_4bit_wgmma_host.h"
#include "cuda/linear_4bit_wgmma_launch.cuh"
#include "ops/codebook_fit.h"

namespace qbits::cuda {
namespace {

constexpr std::string_view kOp = "linear_4bit";

using Encode = decltype(&cuTensorMapEncodeTiled);

// Found through the runtime, so that libqbits loads where there is no driver.
Encode encoder() {
  static const Encode found = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result), kOp);
    if (result != cudaDriverEntryPointSuccess) fail(cudaErrorNotSupported, kOp);
    return reinterpret_cast<Encode>(entry);
  }();
  return found;
}

CUtensorMap encode(const MatrixMap& matrix, CUtensorMapDataType type, CUtensorMapSwizzle swizzle) {
  CUtensorMap map{};
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(matrix.columns), static_cast<cuuint64_t>(matrix.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(matrix.row_bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(matrix.box_columns), static_cast<cuuint32_t>(matrix.box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const auto encode = [&] {
    return encoder()(&map, type, 2, const_cast<void*>(matrix.data), sizes, strides, box, steps,
                     CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult status = encode();
  if (status != CUDA_SUCCESS) {  // a thread whose first CUDA call this is: the driver has no context for it yet
    int device = 0;
    check(cudaGetDevice(&device), kOp);
    check(cudaSetDevice(device), kOp);
    status = encode();
  }
  if (status != CUDA_SUCCESS) fail(static_cast<cudaError_t>(status), kOp);  // the numbers are the same
  return map;
}

// What weights are decoded from that are scaled each: float16, or of those for float16, kFractions.
OperandCodebook weights_codebook(const Format& format, DType dtype) {
  constexpr FitTarget kTarget{.bits = kSignificandBits<__half>, .rounded_bits = kSignificandBits<__nv_bfloat16>};
  constexpr FitTarget kFraction{.bits = 16, .rounded_bits = kSignificandBits<__half>, .shift = kFractionShift};
  if (dtype != DType::Float16) return operand_codebook<__half>(fitted<kTarget>(format));
  const FittedCodebook& fit = fitted<kFraction>(format);
  OperandCodebook book = operand_codebook<__half>(fit);
  for (int i = 0; i < 16; ++i) {
    const uint32_t fraction = std::bit_cast<uint32_t>(kFractionShift + fit.values[i]) >> 8 & 0xffff;
    book.values[i] = (book.values[i] & 0xffff0000) | fraction;
  }
  return book;
}

OperandCodebook wgmma_codebook(const Weight4bitArgs& weight, DType dtype, WgmmaDecode decode) {
  const bool half = dtype == DType::Float16;
  if (decode != WgmmaDecode::Weights) {
    return half ? sums_codebook<__half>(weight) : sums_codebook<__nv_bfloat16>(weight);
  }
  return weight.is_affine() ? sums_codebook<__half>(weight) : weights_codebook(*weight.format, dtype);
}

// A number that hardly any launch before had, and that what lies in memory by chance does not equal; never 0.
uint64_t next_nonce() {
  static std::atomic<uint64_t> count = (uint64_t{std::random_device{}()} << 32) + std::random_device{}();
  uint64_t x = count.fetch_add(1, std::memory_order_relaxed) * 0x9e3779b97f4a7c15;  // the mixing of splitmix64
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31 | 1;
}

}  // namespace

CUtensorMap encode_codes(const MatrixMap& matrix) {
  return encode(matrix, CU_TENSOR_MAP_DATA_TYPE_UINT8,
                matrix.box_columns == 32   ? CU_TENSOR_MAP_SWIZZLE_32B
                : matrix.box_columns == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                           : CU_TENSOR_MAP_SWIZZLE_128B);
}

CUtensorMap encode_tile(const MatrixMap& matrix, DType dtype) {
  return encode(matrix, dtype == DType::Float16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                CU_TENSOR_MAP_SWIZZLE_128B);
}

void set_wgmma_x(WgmmaArgs& wgmma, const void* x, int64_t rows, int64_t depth, DType dtype, const WgmmaPlan& plan,
                 bool of_experts) {
  const MatrixMap matrix{.data = x,
                         .rows = rows,
                         .columns = depth,
                         .row_bytes = depth * 2,
                         .box_rows = plan.columns / plan.sharers,
                         .box_columns = kWgmmaStepDepth};
  wgmma.x = encode_tiles(matrix, of_experts, [&](const MatrixMap& m) { return encode_tile(m, dtype); });
}

void set_wgmma_weight(WgmmaArgs& wgmma, const Weight4bitArgs& weight, DType dtype, const WgmmaPlan& plan,
                      void* workspace, bool transposed) {
  wgmma.codes = encode_codes({.data = weight.codes,
                              .rows = weight.rows,
                              .columns = weight.cols / 2,
                              .row_bytes = weight.cols / 2,
                              .box_rows = transposed ? wgmma_stage_depth(plan.columns) : plan.groups * 64,
                              .box_columns = (transposed ? plan.groups * 64 : wgmma_stage_depth(plan.columns)) / 2});
  wgmma.first_row = static_cast<int>(plan.first);
  wgmma.sharers = plan.sharers;
  wgmma.schedule = linear_4bit_wgmma_schedule(plan, wgmma.m, wgmma.outputs, wgmma.depth);
  // Codes pass through the L2 once, and would push out sums that blocks leave there for one another.
  const bool leaves = wgmma.schedule.m_tiles == 1 && wgmma.schedule.shared_units > 0;
  wgmma.code_policy = leaves ? kEvictFirst : kEvictNormal;
  wgmma.workspace = workspace;
  wgmma.nonce = next_nonce();
  wgmma.wide_groups = weight.cols % 64 == 0 && weight.block_size % 64 == 0;
  wgmma.weight = make_view(weight);
  const bool nested = !weight.is_affine() && weight.absmax.is_nested();
  const int64_t scale_size = weight.is_affine() ? itemsize(weight.scale_dtype) : nested ? 1 : 4;
  const int64_t span = transposed ? 128 : 256;
  const int64_t count = std::max<int64_t>(span / weight.block_size, 1);
  const size_t bytes = static_cast<size_t>(count * scale_size);
  const bool whole = weight.cols % span == 0 && wgmma.wide_groups;
  const bool aligned =
      is_aligned(wgmma.weight.scales, bytes) && (!weight.is_affine() || is_aligned(weight.zeros, bytes));
  wgmma.scale_count = whole && aligned ? static_cast<int>(count) : 0;
  wgmma.zeros_whole = weight.is_affine() && weight.scale_dtype == dtype;
  const OperandCodebook book = wgmma_codebook(weight, dtype, plan.decode);
  std::ranges::copy(book.values, wgmma.values);
  wgmma.factor = book.factor;
}

void linear_4bit_wgmma(const Linear4bitArgs& args, const WgmmaPlan& plan, Stream stream) {
  WgmmaArgs wgmma{};
  set_wgmma_x(wgmma, args.x, args.m, args.weight.cols, args.dtype, plan, false);
  wgmma.bias = args.bias;
  wgmma.out = args.out;
  wgmma.m = args.m;
  wgmma.outputs = args.weight.rows;
  wgmma.depth = args.weight.cols;
  set_wgmma_weight(wgmma, args.weight, args.dtype, plan, args.workspace, false);
  const EarlyReads reads(stream);
  wgmma.early = reads.allowed(args.weight, {memory_of(args.x, args.m, wgmma.depth, args.dtype),
                                            memory_of(args.bias, 1, wgmma.outputs, args.dtype)});
  launch_linear_4bit_wgmma<false, false>(wgmma, args.dtype, plan, stream);
  reads.launched({memory_of(args.out, args.m, wgmma.outputs, args.dtype),
                  MemoryRange{args.workspace, static_cast<size_t>(plan.workspace_bytes)}});
  for (const WgmmaPlan& rest : plan.rest) linear_4bit_wgmma(args, rest, stream);
}

}  // namespace qbits::cuda
