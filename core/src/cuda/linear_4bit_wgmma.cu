#include <algorithm>
#include <atomic>
#include <cmath>
#include <random>
#include <string>
#include <vector>

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

// The fitted codebooks of the format table, computed once: pure functions of constants.
enum class Fit { BFloat16, Float16, Fractions, Count };

const FittedCodebook& fitted(const Format& format, Fit fit) {
  static const std::vector<FittedCodebook> table = [] {
    std::vector<FittedCodebook> fits(formats().size() * static_cast<size_t>(Fit::Count));
    for (size_t i = 0; i < formats().size(); ++i) {
      const std::span<const float> codebook = formats()[i].codebook;
      if (codebook.size() != 16) continue;
      FittedCodebook* const row = &fits[i * static_cast<size_t>(Fit::Count)];
      row[static_cast<size_t>(Fit::BFloat16)] = fit_codebook(codebook, 8);
      row[static_cast<size_t>(Fit::Float16)] = fit_codebook(codebook, 11);
      row[static_cast<size_t>(Fit::Fractions)] = fit_codebook_shifted(codebook, kFractionShift, 16);
    }
    return fits;
  }();
  const auto row = static_cast<size_t>(&format - formats().data());
  return table[row * static_cast<size_t>(Fit::Count) + static_cast<size_t>(fit)];
}

// Codes less their centre, `unit` apart.
FittedCodebook affine_codes(float unit) {
  FittedCodebook fit{.factor = 1.0F};
  for (int i = 0; i < 16; ++i) fit.values[i] = (static_cast<float>(i) - kAffineCentre) * unit;
  return fit;
}

// to_bits: of a value, the 16 that the decoder wants.
template <class ToBits>
void set_values(WgmmaArgs& wgmma, const FittedCodebook& fit, ToBits to_bits) {
  wgmma.factor = fit.factor;
  for (int i = 0; i < 16; ++i) wgmma.values[i] = to_bits(fit.values[i]);
}

// A number that hardly any launch before had, and that what lies in memory by chance does not equal; 48 bits, then 0.
uint64_t next_nonce() {
  static std::atomic<uint64_t> count = (uint64_t{std::random_device{}()} << 32) + std::random_device{}();
  uint64_t x = count.fetch_add(1, std::memory_order_relaxed) * 0x9e3779b97f4a7c15;  // the mixing of splitmix64
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return (x ^ x >> 31) & ~uint64_t{0xffff};
}

}  // namespace

CUtensorMap encode_codes(const MatrixMap& matrix) {
  return encode(matrix, CU_TENSOR_MAP_DATA_TYPE_UINT8,
                matrix.box_columns == 32 ? CU_TENSOR_MAP_SWIZZLE_32B : CU_TENSOR_MAP_SWIZZLE_64B);
}

CUtensorMap encode_tile(const MatrixMap& matrix, DType dtype) {
  return encode(matrix, dtype == DType::Float16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                CU_TENSOR_MAP_SWIZZLE_128B);
}

void set_wgmma_weight(WgmmaArgs& wgmma, const Weight4bitArgs& weight, DType dtype, const WgmmaPlan& plan,
                      void* workspace, bool transposed) {
  wgmma.codes = encode_codes({.data = weight.codes,
                              .rows = weight.rows,
                              .columns = weight.cols / 2,
                              .row_bytes = weight.cols / 2,
                              .box_rows = transposed ? wgmma_stage_depth(plan.columns) : plan.groups * 64,
                              .box_columns = (transposed ? plan.groups * 64 : wgmma_stage_depth(plan.columns)) / 2});
  wgmma.schedule = linear_4bit_wgmma_schedule(plan, wgmma.m, wgmma.outputs, wgmma.depth);
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
  const bool sums = plan.decode == WgmmaDecode::Sums;
  const bool half = dtype == DType::Float16;
  const auto codes = [&](Fit fit) {
    return weight.is_affine() ? affine_codes(sums ? kZeroShift : 1.0F) : fitted(*weight.format, fit);
  };
  if (sums && !half) {
    set_values(wgmma, codes(Fit::BFloat16), [](float v) { return std::bit_cast<uint16_t>(__nv_bfloat16(v)); });
  } else if (!sums && half && !weight.is_affine()) {  // kFractions
    set_values(wgmma, codes(Fit::Fractions),
               [](float v) { return std::bit_cast<uint32_t>(kFractionShift + v) >> 8 & 0xffff; });
  } else {
    set_values(wgmma, codes(Fit::Float16), [](float v) { return std::bit_cast<uint16_t>(__half(v)); });
  }
}

void linear_4bit_wgmma(const Linear4bitArgs& args, const WgmmaPlan& plan, Stream stream) {
  WgmmaArgs wgmma{};
  wgmma.x = encode_tile({.data = args.x,
                         .rows = args.m,
                         .columns = args.weight.cols,
                         .row_bytes = args.weight.cols * 2,
                         .box_rows = plan.columns,
                         .box_columns = kWgmmaStepDepth},
                        args.dtype);
  wgmma.bias = args.bias;
  wgmma.out = args.out;
  wgmma.m = args.m;
  wgmma.outputs = args.weight.rows;
  wgmma.depth = args.weight.cols;
  set_wgmma_weight(wgmma, args.weight, args.dtype, plan, args.workspace, false);
  launch_linear_4bit_wgmma<false, false>(wgmma, args.dtype, plan, stream);
}

}  // namespace qbits::cuda
