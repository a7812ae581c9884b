#include "qbits/format.h"

#include <array>
#include <string>

#include "ops/ceil_div.h"
#include "ops/check.h"

namespace qbits {
namespace {

// QLoRA (arXiv 2305.14314), appendix E: quantiles of the standard normal distribution, with an exact zero.
constexpr std::array<float, 16> kNf4 = {-1.0F,
                                        -0.6961928009986877F,
                                        -0.5250730514526367F,
                                        -0.39491748809814453F,
                                        -0.28444138169288635F,
                                        -0.18477343022823334F,
                                        -0.09105003625154495F,
                                        0.0F,
                                        0.07958029955625534F,
                                        0.16093020141124725F,
                                        0.24611230194568634F,
                                        0.33791524171829224F,
                                        0.44070982933044434F,
                                        0.5626170039176941F,
                                        0.7229568362236023F,
                                        1.0F};

// bitsandbytes' fp4: sign in bit 3, then magnitudes 0, 0.0625, 8, 12, 4, 6, 2, 3 over 12.
constexpr std::array<float, 16> kFp4 = {0.0F,       0.0625F / 12, 8.0F / 12,  1.0F,          4.0F / 12,  6.0F / 12,
                                        2.0F / 12,  3.0F / 12,    0.0F,       -0.0625F / 12, -8.0F / 12, -1.0F,
                                        -4.0F / 12, -6.0F / 12,   -2.0F / 12, -3.0F / 12};

template <class Fill>
std::array<float, 256> map256(Fill fill) {
  std::array<float, 256> values;
  fill(std::span<float>(values));
  return values;
}

constexpr int64_t kBlockSizes[] = {16, 32, 64, 128, 256, 512, 1024, 2048, 4096};
constexpr DType kFloat32Only[] = {DType::Float32};
constexpr DType kFloats[] = {DType::Float32, DType::BFloat16, DType::Float16};
constexpr std::string_view kCodebookTensors[] = {"codes", "absmax"};
constexpr std::string_view kAffineTensors[] = {"codes", "scales", "zeros"};
constexpr std::string_view kSymmetricTensors[] = {"codes", "scales"};

Format codebook(std::string_view name, std::string_view summary, int bits, std::span<const float> values, Ties ties) {
  return {.name = name,
          .summary = summary,
          .bits = bits,
          .coding = Coding::Codebook,
          .codebook = values,
          .ties = ties,
          .block_sizes = kBlockSizes,
          .whole_rows = false,
          .scale_dtypes = kFloat32Only,
          .tensors = kCodebookTensors};
}

Format affine(std::string_view name, std::string_view summary, int bits) {
  return {.name = name,
          .summary = summary,
          .bits = bits,
          .coding = Coding::Affine,
          .codebook = {},
          .ties = Ties::Even,
          .block_sizes = kBlockSizes,
          .whole_rows = true,
          .scale_dtypes = kFloats,
          .tensors = kAffineTensors};
}

Format symmetric(std::string_view name, std::string_view summary) {
  return {.name = name,
          .summary = summary,
          .bits = 8,
          .coding = Coding::Symmetric,
          .codebook = {},
          .ties = Ties::Even,
          .block_sizes = {},
          .whole_rows = true,
          .scale_dtypes = kFloat32Only,
          .tensors = kSymmetricTensors};
}

std::span<const Format> table() {
  static const auto dynamic = map256([](auto out) { create_dynamic_map(true, 7, 8, out); });
  static const auto dynamic_unsigned = map256([](auto out) { create_dynamic_map(false, 7, 8, out); });
  static const auto linear = map256([](auto out) { create_linear_map(true, 8, true, out); });
  static const auto linear_unsigned = map256([](auto out) { create_linear_map(false, 8, true, out); });
  static const auto e4m3 = map256([](auto out) { create_fp8_map(true, 4, 3, 8, out); });
  static const auto e5m2 = map256([](auto out) { create_fp8_map(true, 5, 2, 8, out); });
  static const auto normal = map256([](auto out) { create_normal_map(0.9677083, true, out); });
  static const std::array<Format, 13> rows = {
      codebook("nf4", "4-bit NormalFloat: quantiles of a normal distribution", 4, kNf4, Ties::Lower),
      codebook("fp4", "4-bit float: sign, 2 exponent bits, 1 mantissa bit", 4, kFp4, Ties::TowardZero),
      affine("int4", "4-bit linear with a scale and a zero point per group", 4),
      symmetric("int8", "8-bit linear with a scale per row: LLM.int8()"),
      affine("int8_affine", "8-bit linear with a scale and a zero point per group", 8),
      codebook("dynamic", "8-bit signed dynamic exponent map", 8, dynamic, Ties::Even),
      codebook("dynamic_unsigned", "8-bit unsigned dynamic exponent map", 8, dynamic_unsigned, Ties::Even),
      codebook("linear", "8-bit signed linear map", 8, linear, Ties::Even),
      codebook("linear_unsigned", "8-bit unsigned linear map", 8, linear_unsigned, Ties::Even),
      codebook("fp8_e4m3", "8-bit float map: 4 exponent bits, 3 mantissa bits", 8, e4m3, Ties::Even),
      codebook("fp8_e5m2", "8-bit float map: 5 exponent bits, 2 mantissa bits", 8, e5m2, Ties::Even),
      codebook("normal", "8-bit map of 16 normal quantiles", 8, normal, Ties::Even),
      codebook("quantile", "8-bit map made from the quantiles of the data", 8, {}, Ties::Even),
  };
  return rows;
}

}  // namespace

std::span<const Format> formats() { return table(); }

const Format& format(std::string_view name) {
  std::string known;
  for (const Format& row : table()) {
    if (row.name == name) return row;
    known.append(known.empty() ? "" : ", ").append(row.name);
  }
  check::fail(ErrorCode::InvalidArgument, "format", "name", std::string(name), "one of " + known);
}

int64_t codes_size(const Format& format, int64_t numel) { return format.is_4bit() ? numel / 2 + numel % 2 : numel; }

int64_t num_scales(const Format& format, int64_t rows, int64_t cols, int64_t block_size) {
  check::block_size("num_scales", "block size", format, block_size);
  int64_t n = 0;
  check::require(
      rows >= 0 && cols >= 0 && !__builtin_mul_overflow(rows, cols, &n), ErrorCode::InvalidArgument, "num_scales",
      "shape", [&] { return std::to_string(rows) + " x " + std::to_string(cols); },
      "sizes of at least 0 with a product below 2^63");
  if (format.coding == Coding::Symmetric) return rows;
  if (n == 0) return 0;
  if (format.coding == Coding::Codebook) return ceil_div(n, block_size);
  return rows * (block_size == 0 ? 1 : ceil_div(cols, block_size));
}

}  // namespace qbits
