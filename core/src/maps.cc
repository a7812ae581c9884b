#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "ops/check.h"
#include "qbits/error.h"
#include "qbits/format.h"

// The 8-bit code maps. Values are computed in the precision and order that bitsandbytes' Python uses,
// because its checkpoints and optimizer states are read with these very bits.

namespace qbits {
namespace {

// torch.linspace in float32 as its vector code computes it: from the nearer end, one fused rounding.
std::vector<float> linspace(float start, float end, int steps) {
  std::vector<float> values(steps);
  const float step = steps > 1 ? (end - start) / static_cast<float>(steps - 1) : 0.0F;
  for (int i = 0; i < steps; ++i) {
    const float left = static_cast<float>(i);
    const float right = static_cast<float>(steps - 1 - i);
    values[i] = i < steps / 2 ? std::fma(step, left, start) : std::fma(-step, right, end);
  }
  return values;
}

void check_map(std::string_view op, bool ok, std::string_view what, int got, const std::string& want,
               std::span<float> out) {
  check::require(ok, ErrorCode::InvalidArgument, op, what, std::to_string(got), want);
  check::require(out.size() == 256, ErrorCode::InvalidArgument, op, "out", std::to_string(out.size()), "256 values");
}

// Pads with zeros to 256 entries and sorts.
void finish(std::vector<float> values, std::span<float> out) {
  values.resize(256, 0.0F);
  std::sort(values.begin(), values.end());
  std::copy(values.begin(), values.end(), out.begin());
}

// The inverse of the standard normal distribution function: Halley steps on erfc until they stand still.
double normal_quantile(double p) {
  double x = 0.0;
  for (int i = 0; i < 60; ++i) {
    const double cdf = 0.5 * std::erfc(-x / std::sqrt(2.0));
    const double pdf = std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
    const double f = (cdf - p) / pdf;
    const double next = x - f / (1 + x * f / 2);  // Halley: pdf' / pdf = -x
    if (next == x) break;
    x = next;
  }
  return x;
}

}  // namespace

void create_dynamic_map(bool is_signed, int max_exponent_bits, int total_bits, std::span<float> out) {
  constexpr std::string_view op = "create_dynamic_map";
  check_map(op, total_bits >= 2 && total_bits <= 8, "total_bits", total_bits, "2 to 8", out);
  const int fraction_bits = total_bits - 1 - max_exponent_bits;
  check_map(op, max_exponent_bits >= 1 && fraction_bits >= 0, "max_exponent_bits", max_exponent_bits,
            "1 to total_bits - 1", out);
  std::vector<float> values;
  auto add_means = [&](int boundaries, int decade) {
    const std::vector<float> edge = linspace(0.1F, 1.0F, boundaries);
    const float scale = static_cast<float>(std::pow(10.0, decade));
    for (int i = 0; i + 1 < boundaries; ++i) {
      const float mean = (edge[i] + edge[i + 1]) / 2.0F;
      values.push_back(scale * mean);
      if (is_signed) values.push_back(-(scale * mean));
    }
  };
  for (int i = 0; i < max_exponent_bits; ++i) {
    add_means((1 << (i + fraction_bits + (is_signed ? 0 : 1))) + 1, i - (max_exponent_bits - 1));
  }
  if (const int extra = (1 << fraction_bits) - 1; extra > 0) add_means(extra + 1, 0);
  values.push_back(0.0F);
  values.push_back(1.0F);
  finish(std::move(values), out);
}

void create_linear_map(bool is_signed, int total_bits, bool add_zero, std::span<float> out) {
  check_map("create_linear_map", total_bits >= 2 && total_bits <= 8, "total_bits", total_bits, "2 to 8", out);
  const bool odd = is_signed && (add_zero || total_bits < 8);  // an odd count has an exact zero in the middle
  const int count = (1 << total_bits) - (odd ? 1 : 0);
  const std::vector<float> values = linspace(is_signed ? -1.0F : 0.0F, 1.0F, count);
  const int left = count / 2;
  std::fill(out.begin(), out.end(), 0.0F);
  std::copy(values.begin(), values.begin() + left, out.begin());
  std::copy(values.begin() + left, values.end(), out.end() - (count - left));
}

void create_fp8_map(bool is_signed, int exponent_bits, int precision_bits, int total_bits, std::span<float> out) {
  constexpr std::string_view op = "create_fp8_map";
  check_map(op, total_bits >= 2 && total_bits <= 8, "total_bits", total_bits, "2 to 8", out);
  check_map(op, exponent_bits >= 1 && precision_bits >= 0 && exponent_bits + precision_bits == total_bits - is_signed,
            "exponent_bits + precision_bits", exponent_bits + precision_bits,
            std::to_string(total_bits - is_signed) + " (total_bits less the sign)", out);
  const int bias = 1 << (exponent_bits - 1);
  std::vector<double> values;
  for (int e = 0; e < 1 << exponent_bits; ++e) {
    for (int m = 0; m < 1 << precision_bits; ++m) {
      const double fraction = static_cast<double>(m) / (1 << precision_bits);
      const double value = e == 0 ? std::ldexp(fraction, -bias) : std::ldexp(1 + fraction, -(e - bias - 1));
      values.push_back(value);
      if (is_signed) values.push_back(-value);
    }
  }
  const float largest = static_cast<float>(*std::max_element(values.begin(), values.end()));
  std::vector<float> scaled;
  for (double value : values) scaled.push_back(static_cast<float>(value) / largest);
  finish(std::move(scaled), out);
}

void create_normal_map(double offset, bool use_extra_value, std::span<float> out) {
  constexpr std::string_view op = "create_normal_map";
  check::require(offset > 0.5 && offset < 1.0, ErrorCode::InvalidArgument, op, "offset", std::to_string(offset),
                 "above 0.5 and below 1");
  check_map(op, true, "out", 0, "", out);
  std::vector<float> values;
  auto add_side = [&](int boundaries, float sign) {
    const std::vector<float> p = linspace(static_cast<float>(offset), 0.5F, boundaries);
    for (int i = 0; i + 1 < boundaries; ++i) values.push_back(sign * static_cast<float>(normal_quantile(p[i])));
  };
  add_side(use_extra_value ? 9 : 8, 1.0F);
  add_side(8, -1.0F);
  const float largest = *std::max_element(values.begin(), values.end());
  for (float& value : values) value /= largest;
  finish(std::move(values), out);
}

}  // namespace qbits
