#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "float_bits.h"
#include "qbits/error.h"
#include "qbits/quantize.h"
#include "qbits/runtime.h"
#include "refusal.h"

namespace qbits {
namespace {

TensorView view(std::vector<float>& values) {
  return TensorView::contiguous(values.data(), DType::Float32, {std::ssize(values)});
}
TensorView view(std::vector<uint8_t>& values) {
  return TensorView::contiguous(values.data(), DType::UInt8, {std::ssize(values)});
}
TensorView view(float& value) { return TensorView::contiguous(&value, DType::Float32, {}); }

std::vector<float> dynamic_map() {
  std::vector<float> code(256);
  create_dynamic_map(true, 7, 8, code);
  return code;
}

struct Nested {
  std::vector<uint8_t> values;
  std::vector<float> absmax, code = dynamic_map();
  float offset = -7;

  explicit Nested(int64_t n) : values(n, 0xCD), absmax((n + 255) / 256, -7) {}
  void quantize(std::vector<float>& x) {
    quantize_absmax(view(x), view(code), view(values), view(absmax), view(offset));
  }
  std::vector<float> dequantize() {
    std::vector<float> out(values.size(), -7);
    const Absmax scales{
        .values = view(values), .nested_absmax = view(absmax), .nested_code = view(code), .offset = view(offset)};
    dequantize_absmax(scales, view(out));
    return out;
  }
};

std::vector<float> random_absmax(int64_t n, uint32_t seed) {
  std::mt19937 engine(seed);
  std::uniform_real_distribution<float> uniform(0.01F, 0.2F);
  std::vector<float> x(n);
  for (float& v : x) v = uniform(engine);
  return x;
}

// The mean in the order the library promises: lanes of 256 within chunks of 16384, lanes pairwise, chunks in order.
float ordered_mean(const std::vector<float>& x) {
  double total = 0;
  for (size_t start = 0; start < x.size(); start += 16384) {
    std::vector<double> lanes(256, 0.0);
    for (size_t i = start; i < std::min(start + 16384, x.size()); ++i) lanes[(i - start) % 256] += x[i];
    for (int half = 128; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    total += lanes[0];
  }
  return static_cast<float>(total / static_cast<double>(x.size()));
}

TEST(QuantizeAbsmax, MeanNearestCodesAndRoundTrip) {
  for (int64_t n : {1, 2, 7, 255, 256, 257, 1000, 16383, 16384, 16385, 100003, 9000000}) {
    std::vector<float> x = random_absmax(n, static_cast<uint32_t>(n));
    Nested q(n);
    q.quantize(x);
    ASSERT_EQ(q.offset, ordered_mean(x)) << n;
    const std::vector<float> out = q.dequantize();
    for (int64_t i = 0; i < n; i += n > 200000 ? 97 : 1) {
      const int64_t start = i / 256 * 256;
      float absmax = 0;
      for (int64_t j = start; j < std::min(start + 256, n); ++j) absmax = std::max(absmax, std::fabs(x[j] - q.offset));
      ASSERT_EQ(q.absmax[i / 256], absmax);
      if (absmax > 0) {
        const double quotient = (x[i] - q.offset) / absmax;
        for (float other : q.code) {
          ASSERT_LE(std::fabs(q.code[q.values[i]] - quotient), std::fabs(other - quotient)) << n << " " << i;
        }
      }
      const float product = q.code[q.values[i]] * absmax;
      ASSERT_EQ(out[i], product + q.offset) << n << " " << i;
    }
  }
}

TEST(QuantizeAbsmax, SameBitsForAnyNumberOfThreads) {
  std::vector<float> x = random_absmax(300000, 1);
  const int threads = num_threads();
  set_num_threads(1);
  Nested one(300000);
  one.quantize(x);
  for (int count : {2, 3}) {
    set_num_threads(count);
    Nested q(300000);
    q.quantize(x);
    EXPECT_EQ(q.offset, one.offset);
    EXPECT_EQ(q.values, one.values);
    EXPECT_EQ(q.absmax, one.absmax);
  }
  set_num_threads(threads);
}

TEST(QuantizeAbsmax, EqualScalesComeBackExactly) {
  std::vector<float> x(600, 0.125F);
  Nested q(600);
  q.quantize(x);
  EXPECT_EQ(q.dequantize(), x);
  std::vector<float> zeros(600, 0.0F);
  q.quantize(zeros);
  EXPECT_EQ(q.dequantize(), zeros);
}

TEST(QuantizeAbsmax, NonFiniteMakesEveryScaleNaN) {
  for (float bad : {NAN, -NAN, INFINITY}) {
    std::vector<float> x = random_absmax(1000, 2);
    x[700] = bad;
    Nested q(1000);
    q.quantize(x);
    EXPECT_FALSE(std::isfinite(q.offset));
    if (std::isnan(bad)) {
      EXPECT_EQ(std::bit_cast<uint32_t>(q.offset), 0x7fc00000U);
    }
    for (float a : q.absmax) EXPECT_EQ(std::bit_cast<uint32_t>(a), 0x7fc00000U);
    for (uint8_t v : q.values) ASSERT_EQ(v, 127);
    for (float out : q.dequantize()) ASSERT_TRUE(std::isnan(out));
  }
}

TEST(QuantizeAbsmax, RefusesBadArgumentsBeforeWriting) {
  std::vector<float> x = random_absmax(300, 2), short_code(255), short_nested(1, -7), out(300);
  Nested q(300);
  auto refused = [&](ErrorCode code, auto call) {
    const std::string message = test::refusal(code, call);
    EXPECT_NE(message.find("quantize_absmax] "), std::string::npos) << message;
  };
  const TensorView v = view(x), c = view(q.code), k = view(q.values), a = view(q.absmax), o = view(q.offset);
  refused(ErrorCode::InvalidArgument, [&] { quantize_absmax(v, view(short_code), k, a, o); });
  refused(ErrorCode::InvalidArgument, [&] { quantize_absmax(v, c, k, view(short_nested), o); });
  refused(ErrorCode::InvalidArgument, [&] { quantize_absmax(v, c, k, a, v); });
  refused(ErrorCode::InvalidType, [&] { quantize_absmax(v, c, v, a, o); });
  refused(ErrorCode::InvalidType, [&] { quantize_absmax(k, c, k, a, o); });
  refused(ErrorCode::InvalidArgument, [&] { dequantize_absmax({.values = v}, view(out)); });
  refused(ErrorCode::InvalidArgument, [&] { dequantize_absmax({.values = k, .nested_absmax = a}, view(out)); });
  const Absmax wrong{.values = v, .nested_absmax = a, .nested_code = c, .offset = o};
  refused(ErrorCode::InvalidType, [&] { dequantize_absmax(wrong, view(out)); });
  std::reverse(q.code.begin(), q.code.end());
  refused(ErrorCode::InvalidArgument, [&] { quantize_absmax(v, c, k, a, o); });
  EXPECT_EQ(q.values[0], 0xCD);
  EXPECT_EQ(q.absmax[0], -7);
  EXPECT_EQ(q.offset, -7);
}

TEST(QuantizeAbsmax, EmptyDoesNothing) {
  Nested q(0);
  std::vector<float> none;
  q.quantize(none);
  EXPECT_TRUE(q.dequantize().empty());
  EXPECT_EQ(q.offset, -7);
}

}  // namespace
}  // namespace qbits
