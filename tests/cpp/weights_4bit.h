#pragma once

#include <optional>
#include <string>
#include <vector>

#include "float_bits.h"
#include "qbits/format.h"

// 4-bit weights of every kind for the tests of the products, with their float64 values by the definition.

namespace qbits::test {

// How a weight keeps its scales.
enum class Scales { Plain, Nested, AffineFloat32, AffineBFloat16, AffineFloat16 };

inline constexpr Scales kAllScales[] = {Scales::Plain, Scales::Nested, Scales::AffineFloat32, Scales::AffineBFloat16,
                                        Scales::AffineFloat16};

inline bool is_affine(Scales kind) { return kind >= Scales::AffineFloat32; }

inline TensorView view_of(std::vector<float>& v) {
  return TensorView::contiguous(v.data(), DType::Float32, {std::ssize(v)});
}

inline TensorView view_of(std::vector<uint8_t>& v) {
  return TensorView::contiguous(v.data(), DType::UInt8, {std::ssize(v)});
}

// Random codes and scales: no need for a float weight behind them.
struct RandomWeight {
  Weight4bit weight;
  std::vector<uint8_t> codes;
  std::vector<float> absmax;
  std::vector<uint8_t> values;
  std::vector<float> nested_absmax;
  std::vector<float> nested_code;
  std::vector<float> offset;
  std::optional<Buffer> scales;
  std::optional<Buffer> zeros;

  RandomWeight(std::string_view format_name, Scales kind, int64_t rows, int64_t cols, int64_t block_size,
               uint32_t seed) {
    const Format& f = format(format_name);
    std::mt19937 engine(seed);
    codes.resize(static_cast<size_t>(codes_size(f, rows * cols)));
    for (uint8_t& byte : codes) byte = static_cast<uint8_t>(engine());
    weight = {.format = &f, .rows = rows, .cols = cols, .block_size = block_size, .codes = view_of(codes)};
    const int64_t n = num_scales(f, rows, cols, block_size);
    if (is_affine(kind)) {
      const DType dtype = kind == Scales::AffineFloat32    ? DType::Float32
                          : kind == Scales::AffineBFloat16 ? DType::BFloat16
                                                           : DType::Float16;
      scales = random_buffer(dtype, n, seed + 1, 0.1F);
      zeros = Buffer(dtype, n);
      std::uniform_real_distribution<float> zero(-1.0F, 16.0F);  // HQQ's zeros are no integers
      for (int64_t i = 0; i < n; ++i) zeros->set(i, rounded(zero(engine), dtype));
      weight.scales = view_of(*scales, {n});
      weight.zeros = view_of(*zeros, {n});
    } else if (kind == Scales::Plain) {
      std::uniform_real_distribution<float> scale(0.5F, 2.0F);
      for (int64_t i = 0; i < n; ++i) absmax.push_back(scale(engine));
      weight.absmax.values = view_of(absmax);
    } else {
      std::uniform_real_distribution<float> scale(0.1F, 0.5F);
      for (int64_t i = 0; i < n; ++i) values.push_back(static_cast<uint8_t>(engine()));
      for (int64_t i = 0; i < (n + kNestedBlockSize - 1) / kNestedBlockSize; ++i)
        nested_absmax.push_back(scale(engine));
      nested_code.resize(256);
      create_dynamic_map(true, 7, 8, nested_code);
      offset = {1.25F};
      weight.absmax = {.values = view_of(values),
                       .nested_absmax = view_of(nested_absmax),
                       .nested_code = view_of(nested_code),
                       .offset = view_of(offset)};
    }
  }

  RandomWeight(const RandomWeight&) = delete;  // `weight` points into the vectors

  float scale_at(int64_t i) const {
    if (scales) return scales->get(i);
    if (!weight.absmax.nested_absmax) return absmax[i];
    const float product = nested_code[values[i]] * nested_absmax[i / kNestedBlockSize];
    return product + offset[0];
  }

  // W[row, col] in float32, by the definition.
  float at(int64_t row, int64_t col) const {
    const int64_t i = row * weight.cols + col;
    const int code = i % 2 ? codes[i / 2] & 15 : codes[i / 2] >> 4;
    if (!scales) return weight.format->codebook[code] * scale_at(i / weight.block_size);
    const int64_t group = weight.block_size == 0 ? weight.cols : weight.block_size;
    const int64_t scale = row * ((weight.cols + group - 1) / group) + col / group;
    const float shifted = static_cast<float>(code) - zeros->get(scale);
    return shifted * scales->get(scale);
  }
};

// Calls f(weight, where) for every format and kind of scales of one shape.
template <class F>
void for_each_weight(int64_t rows, int64_t cols, int64_t block_size, F f) {
  for (std::string_view name : {"nf4", "fp4", "int4"}) {
    for (Scales kind : kAllScales) {
      if (is_affine(kind) != (name == "int4")) continue;
      const RandomWeight weight(name, kind, rows, cols, block_size,
                                static_cast<uint32_t>(rows * 31 + cols + block_size));
      f(weight, std::string(name) + " scales " + std::to_string(static_cast<int>(kind)) + " N " + std::to_string(rows) +
                    " K " + std::to_string(cols) + " block " + std::to_string(block_size));
    }
  }
}

// How far a float32 sum of `terms` products may be from the exact one: (terms + 3) roundings of the sum of
// magnitudes (the weight itself may be taken apart into code and scale), then one of the result to `dtype`.
inline double sum_bound(int64_t terms, double magnitude, double exact, DType dtype) {
  const double unit = dtype == DType::Float32 ? 0x1p-24 : dtype == DType::BFloat16 ? 0x1p-8 : 0x1p-11;
  const double subnormal = dtype == DType::Float16 ? 0x1p-25 : 0x1p-134;
  return static_cast<double>(terms + 3) * 0x1p-24 * magnitude * 1.01 + unit * std::fabs(exact) * 1.01 + subnormal;
}

}  // namespace qbits::test
