#include <gtest/gtest.h>

#include <algorithm>

#include "qbits/error.h"
#include "qbits/runtime.h"
#include "refusal.h"
#include "rows_int8.h"

namespace qbits {
namespace {

using test::Buffer;
using test::kFloats;
using test::view_of;
using test::Weight;
using test::workspace_of;

Buffer multiply(Buffer& x, int64_t m, Weight& w, Buffer* bias) {
  Buffer out(x.dtype, m * w.n);
  std::vector<uint8_t> bytes(static_cast<size_t>(linear_int8_weight_only_workspace(w.view(), m, x.dtype)), 0xCD);
  std::optional<TensorView> bias_view;
  if (bias != nullptr) bias_view = view_of(*bias, {w.n});
  linear_int8_weight_only(view_of(x, {m, w.k}), w.view(), bias_view, view_of(out, {m, w.n}), workspace_of(bytes));
  return out;
}

// Against the value in float64: each product and each sum may round, then three more roundings and out's own.
void expect_product(Buffer& x, int64_t m, Weight& w, Buffer* bias) {
  const Buffer out = multiply(x, m, w, bias);
  const double unit = x.dtype == DType::Float32 ? 0x1p-24 : x.dtype == DType::BFloat16 ? 0x1p-8 : 0x1p-11;
  const double subnormal = x.dtype == DType::Float16 ? 0x1p-25 : 0x1p-133;
  for (int64_t row = 0; row < m; ++row) {
    for (int64_t n = 0; n < w.n; ++n) {
      double exact = 0, magnitude = 0;
      for (int64_t k = 0; k < w.k; ++k) {
        const double product = static_cast<double>(x.get(row * w.k + k)) * w.codes[n * w.k + k];
        exact += product;
        magnitude += std::fabs(product);
      }
      const double c = bias != nullptr ? bias->get(n) : 0.0;
      exact = exact * w.scales[n] / 127 + c;
      magnitude = magnitude * w.scales[n] / 127 + std::fabs(c);
      const double roundings = 2.0 * static_cast<double>(w.k) + 3;
      ASSERT_NEAR(out.get(row * w.n + n), exact,
                  roundings * 0x1p-24 * magnitude * 1.01 + unit * std::fabs(exact) * 1.01 + subnormal)
          << name(x.dtype) << " N " << w.n << " K " << w.k << " M " << m << " at " << row << ", " << n;
    }
  }
}

TEST(LinearInt8WeightOnly, EveryDtypeAndShape) {
  for (auto [n, k] : {std::pair<int64_t, int64_t>{1, 1},
                      {3, 5},
                      {7, 31},
                      {5, 64},
                      {33, 65},
                      {31, 127},
                      {32, 128},
                      {66, 130},
                      {9, 511},
                      {4, 512},
                      {6, 1037}}) {
    Weight w(n, k, static_cast<uint32_t>(n * k));
    for (int64_t m : {0, 1, 2, 3, 4, 5, 6, 9, 13}) {
      for (DType dtype : kFloats) {
        Buffer x = test::random_buffer(dtype, m * k, static_cast<uint32_t>(m + 1));
        Buffer bias = test::random_buffer(dtype, n, 5);
        expect_product(x, m, w, m % 2 ? &bias : nullptr);
      }
    }
  }
}

TEST(LinearInt8WeightOnly, ManyRows) {
  for (int64_t m : {64, 191, 192, 193, 400}) {
    Weight w(67, 333, static_cast<uint32_t>(m));
    for (DType dtype : kFloats) {
      Buffer x = test::random_buffer(dtype, m * 333, 7);
      Buffer bias = test::random_buffer(dtype, 67, 8);
      expect_product(x, m, w, &bias);
    }
  }
}

// Sums of integers are exact, whatever their order: the formula of int8.h to the bit.
TEST(LinearInt8WeightOnly, ExactWhereSumsAre) {
  for (int64_t m : {1, 4, 7}) {
    Weight w(37, 301, 3);
    for (DType dtype : kFloats) {
      Buffer x(dtype, m * w.k), bias = test::random_buffer(dtype, w.n, 8);
      for (int64_t i = 0; i < m * w.k; ++i) x.set(i, static_cast<float>(i % 17 - 8));
      const Buffer out = multiply(x, m, w, &bias);
      for (int64_t i = 0; i < m * w.n; ++i) {
        int64_t sum = 0;
        for (int64_t k = 0; k < w.k; ++k) {
          sum += static_cast<int64_t>(x.get(i / w.n * w.k + k)) * w.codes[i % w.n * w.k + k];
        }
        const float scale = w.scales[i % w.n] / 127.0F;
        ASSERT_EQ(out.get(i), test::rounded(std::fma(scale, static_cast<float>(sum), bias.get(i % w.n)), dtype));
      }
    }
  }
}

TEST(LinearInt8WeightOnly, NoColumns) {
  Weight w(5, 0, 1);
  Buffer x(DType::BFloat16, 0);
  Buffer bias = test::random_buffer(DType::BFloat16, 5, 2);
  for (int64_t m : {3, 9}) {
    expect_product(x, m, w, &bias);
    expect_product(x, m, w, nullptr);
  }
  Weight none(0, 7, 1);
  Buffer rows = test::random_buffer(DType::BFloat16, 14, 2);
  EXPECT_TRUE(multiply(rows, 2, none, nullptr).bytes.empty());
}

TEST(LinearInt8WeightOnly, WorkspaceOfMoreRowsThanFitIsNoSmallNumber) {
  Weight w(1, 1, 1);
  EXPECT_GT(linear_int8_weight_only_workspace(w.view(), int64_t{1} << 58, DType::Float32), int64_t{1} << 58);
}

TEST(LinearInt8WeightOnly, SameBitsForAnyNumberOfThreads) {
  const int threads = num_threads();
  Weight w(300, 1003, 6);
  for (int64_t m : {3, 150}) {
    Buffer x = test::random_buffer(DType::BFloat16, m * 1003, 3);
    set_num_threads(1);
    const Buffer one = multiply(x, m, w, nullptr);
    set_num_threads(3);
    EXPECT_EQ(multiply(x, m, w, nullptr).bytes, one.bytes);
  }
  set_num_threads(threads);
}

TEST(LinearInt8WeightOnly, NonFiniteElementsStayInTheirRows) {
  constexpr int64_t kN = 40, kK = 200;
  Weight w(kN, kK, 6);
  for (int64_t n = 0; n < kN; ++n) w.codes[n * kK + 100] = n % 2 ? 3 : -128;
  std::fill(w.scales.begin(), w.scales.end(), 0.01F);
  for (int64_t m : {4, 7}) {
    for (DType dtype : kFloats) {
      Buffer x = test::random_buffer(dtype, m * kK, 3);
      const Buffer want = multiply(x, m, w, nullptr);
      x.set(1 * kK + 13, NAN);
      x.set(3 * kK + 100, INFINITY);
      const Buffer got = multiply(x, m, w, nullptr);
      for (int64_t i = 0; i < m * kN; ++i) {
        const int64_t row = i / kN, n = i % kN;
        if (row == 1) {
          ASSERT_TRUE(std::isnan(got.get(i)));
        } else {
          ASSERT_EQ(got.get(i), row == 3 ? (n % 2 ? INFINITY : -INFINITY) : want.get(i));
        }
      }
    }
  }
}

TEST(LinearInt8WeightOnly, RefusesBadArgumentsBeforeWriting) {
  Weight w(3, 4, 1);
  Buffer x = test::random_buffer(DType::Float32, 8, 1), bias = test::random_buffer(DType::Float32, 3, 1);
  Buffer half(DType::Float16, 8), out(DType::Float32, 6);
  std::vector<uint8_t> bytes(static_cast<size_t>(linear_int8_weight_only_workspace(w.view(), 2, DType::Float32)), 0xCD);
  const TensorView v = view_of(x, {2, 4}), o = view_of(out, {2, 3}), s = workspace_of(bytes);
  auto refused = [&](ErrorCode code, auto call) {
    const std::string message = test::refusal(code, call);
    EXPECT_NE(message.find("linear_int8_weight_only"), std::string::npos) << message;
  };
  const auto invalid = ErrorCode::InvalidArgument, type = ErrorCode::InvalidType;
  for (float scale : {-1.0F, NAN, -INFINITY}) {
    Weight bad = w;
    bad.scales[2] = scale;
    refused(invalid, [&] { linear_int8_weight_only(v, bad.view(), {}, o, s); });
  }
  refused(invalid, [&] { linear_int8_weight_only(view_of(x, {4, 2}), w.view(), {}, o, s); });
  refused(invalid, [&] { linear_int8_weight_only(v, w.view(), view_of(bias, {2}), o, s); });
  refused(invalid, [&] { linear_int8_weight_only(v, w.view(), {}, view_of(out, {3, 2}), s); });
  refused(invalid, [&] { linear_int8_weight_only(v, w.view(), {}, o, view_of(bytes, DType::UInt8, {8})); });
  refused(type, [&] { linear_int8_weight_only(v, w.view(), {}, view_of(half, {2, 3}), s); });
  refused(type, [&] { linear_int8_weight_only(v, w.view(), view_of(half, {3}), o, s); });
  refused(type, [&] { linear_int8_weight_only(w.view().codes, w.view(), {}, o, s); });
  refused(type, [&] { linear_int8_weight_only_workspace(w.view(), 2, DType::Int8); });
  WeightInt8 bad = w.view();
  bad.scales = view_of(w.scales, DType::Float32, {2});
  refused(invalid, [&] { linear_int8_weight_only(v, bad, {}, o, s); });
  bad = w.view();
  bad.codes = view_of(w.codes, DType::UInt8, {3, 4});
  refused(type, [&] { linear_int8_weight_only(v, bad, {}, o, s); });
  EXPECT_EQ(out.bytes, Buffer(DType::Float32, 6).bytes);
  EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0xCD; }));
}

}  // namespace
}  // namespace qbits
