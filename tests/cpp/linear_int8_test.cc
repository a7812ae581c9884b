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
using test::QuantizedRows;
using test::view_of;
using test::Weight;
using test::workspace_of;

Buffer multiply(Buffer& x, int64_t m, Weight& w, Buffer* bias, float threshold) {
  Buffer out(x.dtype, m * w.n);
  std::vector<uint8_t> bytes(static_cast<size_t>(linear_int8_workspace(w.view(), m, x.dtype, threshold)), 0xCD);
  std::optional<TensorView> bias_view;
  if (bias != nullptr) bias_view = view_of(*bias, {w.n});
  linear_int8(view_of(x, {m, w.k}), w.view(), bias_view, threshold, view_of(out, {m, w.n}), workspace_of(bytes));
  return out;
}

// Without outliers by the formula of int8.h, bit for bit; else against its value in float64. The outliers' sum has a
// rounding for each product and each addition, in any order; the rest five: those of a, b, dot and two sums.
void expect_product(Buffer& x, int64_t m, Weight& w, Buffer* bias, float threshold, const std::string& where) {
  const Buffer out = multiply(x, m, w, bias, threshold);
  const QuantizedRows q(x, m, w.k, threshold);
  const double unit = x.dtype == DType::Float32 ? 0x1p-24 : x.dtype == DType::BFloat16 ? 0x1p-8 : 0x1p-11;
  const double subnormal = x.dtype == DType::Float16 ? 0x1p-25 : 0x1p-133;
  for (int64_t row = 0; row < m; ++row) {
    for (int64_t n = 0; n < w.n; ++n) {
      int64_t dot = 0;
      for (int64_t k = 0; k < w.k; ++k) dot += q.codes[row * w.k + k] * w.codes[n * w.k + k];
      const float a = q.scales[row] / 127.0F;
      const float b = w.scales[n] / 127.0F;
      const float c = bias != nullptr ? bias->get(n) : 0.0F;
      const float got = out.get(row * w.n + n);
      const std::string at = where + " " + std::string(name(x.dtype)) + " M " + std::to_string(m) + " at " +
                             std::to_string(row) + ", " + std::to_string(n);
      if (q.count == 0) {
        const float want = test::rounded(std::fma(b, std::fma(a, static_cast<float>(dot), 0.0F), c), x.dtype);
        ASSERT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(want)) << at;
        continue;
      }
      double exact = static_cast<double>(q.scales[row]) / 127 * static_cast<double>(dot);
      double magnitude = std::fabs(exact);
      for (int32_t k : q.columns) {
        const double product = static_cast<double>(x.get(row * w.k + k)) * w.codes[n * w.k + k];
        exact += product;
        magnitude += std::fabs(product);
      }
      exact = exact * w.scales[n] / 127 + c;
      magnitude = magnitude * w.scales[n] / 127 + std::fabs(c);
      const double roundings = 2.0 * q.count + 5;
      ASSERT_NEAR(got, exact, roundings * 0x1p-24 * magnitude * 1.01 + unit * std::fabs(exact) * 1.01 + subnormal)
          << at;
    }
  }
}

TEST(LinearInt8, EveryDtypeAndShape) {
  for (auto [n, k] : {std::pair<int64_t, int64_t>{1, 1},
                      {3, 5},
                      {7, 31},
                      {5, 64},
                      {33, 65},
                      {31, 127},
                      {32, 128},
                      {66, 130},
                      {9, 1001},
                      {4, 4096},
                      {5, 4097},
                      {3, 8231}}) {
    Weight w(n, k, static_cast<uint32_t>(n * k));
    const std::string where = "N " + std::to_string(n) + " K " + std::to_string(k);
    for (int64_t m : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13}) {
      for (DType dtype : kFloats) {
        Buffer x = test::random_buffer(dtype, m * k, static_cast<uint32_t>(m + 1));
        Buffer bias = test::random_buffer(dtype, n, 5);
        expect_product(x, m, w, m % 2 ? &bias : nullptr, 0.0F, where);
        expect_product(x, m, w, &bias, 2.5F, where + " outliers");
      }
    }
  }
}

TEST(LinearInt8, ManyRows) {
  for (int64_t m : {63, 64, 65, 131, 200}) {
    Weight w(67, 333, static_cast<uint32_t>(m));
    for (DType dtype : kFloats) {
      Buffer x = test::random_buffer(dtype, m * 333, 7);
      Buffer bias = test::random_buffer(dtype, 67, 8);
      for (float threshold : {0.0F, 3.5F}) expect_product(x, m, w, &bias, threshold, "many");
    }
  }
}

TEST(LinearInt8, AnyNumberOfOutlierColumns) {
  constexpr int64_t kM = 5, kN = 37, kK = 601;
  Weight w(kN, kK, 3);
  for (int64_t count : {1, 2, 15, 16, 17, 100, 255, 256, 257, 600, 601}) {
    for (DType dtype : kFloats) {
      Buffer x = test::random_buffer(dtype, kM * kK, 9, 0.5F);
      for (int64_t i = 0; i < count; ++i) x.set(i % kM * kK + i * 7 % kK, i % 2 ? 20.0F : -8.0F);
      ASSERT_EQ(QuantizedRows(x, kM, kK, 6.0F).count, count);
      expect_product(x, kM, w, nullptr, 6.0F, std::to_string(count) + " outlier columns");
    }
  }
}

TEST(LinearInt8, ExtremeCodes) {
  for (int64_t k : {63, 64, 4096, 4097, 9000}) {
    for (int w_code : {-128, 127}) {
      for (float v : {1.0F, -1.0F}) {
        Weight w(5, k, 1);
        std::fill(w.codes.begin(), w.codes.end(), static_cast<int8_t>(w_code));
        Buffer x(DType::Float32, 3 * k);
        for (int64_t i = 0; i < 3 * k; ++i) x.set(i, v);
        expect_product(x, 3, w, nullptr, 0.0F, "codes " + std::to_string(w_code) + " K " + std::to_string(k));
      }
    }
  }
}

TEST(LinearInt8, SumsBeyond32Bits) {
  for (int64_t k : {(1 << 17) - 1, 1 << 17, (1 << 17) + 1, 300001}) {
    for (int w_code : {-128, 127}) {
      Weight w(2, k, 1);
      std::fill(w.codes.begin(), w.codes.end(), static_cast<int8_t>(w_code));
      Buffer x(DType::Float32, k);
      for (int64_t i = 0; i < k; ++i) x.set(i, i == 77 ? 0.5F : 1.0F);
      expect_product(x, 1, w, nullptr, 0.0F, "codes " + std::to_string(w_code) + " K " + std::to_string(k));
    }
  }
}

TEST(LinearInt8, NoColumns) {
  Weight w(5, 0, 1);
  Buffer x(DType::BFloat16, 0);
  Buffer bias = test::random_buffer(DType::BFloat16, 5, 2);
  for (float threshold : {0.0F, 6.0F}) {
    expect_product(x, 3, w, &bias, threshold, "K 0");
    expect_product(x, 3, w, nullptr, threshold, "K 0");
  }
  Weight none(0, 7, 1);
  Buffer rows = test::random_buffer(DType::BFloat16, 14, 2);
  EXPECT_TRUE(multiply(rows, 2, none, nullptr, 6.0F).bytes.empty());
}

TEST(LinearInt8, WorkspaceOfMoreRowsThanFitIsNoSmallNumber) {
  Weight w(1, 1, 1);
  for (float threshold : {0.0F, 6.0F}) {
    EXPECT_GT(linear_int8_workspace(w.view(), int64_t{1} << 58, DType::Float32, threshold), int64_t{1} << 58);
  }
}

TEST(LinearInt8, SmallAndLargeScales) {
  Weight w(9, 100, 4);
  for (float scale : {0x1p-149F, 0x1p-130F, 0x1p100F}) {
    w.scales.assign(9, scale);
    for (float size : {0x1p-140F, 0x1p-20F, 1.0F, 0x1p120F}) {
      Buffer x = test::random_buffer(DType::Float32, 300, 4, size);
      expect_product(x, 3, w, nullptr, 0.0F, "scale " + std::to_string(scale) + " x " + std::to_string(size));
    }
  }
}

// Row `row` of the product of `m` rows equals that of the row alone, for which `x` has the same outlier columns.
TEST(LinearInt8, ARowDoesNotDependOnTheOthers) {
  constexpr int64_t kN = 45, kK = 4500;
  Weight w(kN, kK, 6);
  for (DType dtype : kFloats) {
    for (float threshold : {0.0F, 6.0F}) {
      Buffer x = test::random_buffer(dtype, 70 * kK, 3);
      for (int64_t m = 0; m < 70; ++m) {
        for (int64_t i = 0; i < 21; ++i) x.set(m * kK + i * 200 + 3, i % 2 ? 9.0F : -7.0F);
      }
      const Buffer all = multiply(x, 70, w, nullptr, threshold);
      for (int64_t m : {1, 2, 5, 8, 9, 64, 65}) {
        const Buffer some = multiply(x, m, w, nullptr, threshold);
        EXPECT_TRUE(std::equal(some.bytes.begin(), some.bytes.end(), all.bytes.begin())) << name(dtype) << " M " << m;
      }
      Buffer last(dtype, kK);
      for (int64_t k = 0; k < kK; ++k) last.set(k, x.get(69 * kK + k));
      const Buffer one = multiply(last, 1, w, nullptr, threshold);
      EXPECT_TRUE(std::equal(one.bytes.rbegin(), one.bytes.rend(), all.bytes.rbegin())) << name(dtype);
    }
  }
}

TEST(LinearInt8, SameBitsForAnyNumberOfThreads) {
  const int threads = num_threads();
  Weight w(300, 1003, 6);
  Buffer x = test::random_buffer(DType::BFloat16, 150 * 1003, 3);
  for (float threshold : {0.0F, 3.5F}) {
    set_num_threads(1);
    const Buffer one = multiply(x, 150, w, nullptr, threshold);
    set_num_threads(3);
    EXPECT_EQ(multiply(x, 150, w, nullptr, threshold).bytes, one.bytes);
  }
  set_num_threads(threads);
}

TEST(LinearInt8, NonFiniteElementsStayInTheirRows) {
  constexpr int64_t kM = 7, kN = 40, kK = 200;
  Weight w(kN, kK, 6);
  for (int64_t n = 0; n < kN; ++n) w.codes[n * kK + 100] = n % 2 ? 3 : -128;
  w.codes[5 * kK + 100] = 0;
  std::fill(w.scales.begin(), w.scales.end(), 0.01F);
  for (DType dtype : kFloats) {
    for (float threshold : {0.0F, 6.0F}) {
      Buffer x = test::random_buffer(dtype, kM * kK, 3);
      for (int64_t m = 0; m < kM; ++m) x.set(m * kK + 100, 7.0F);  // the same outlier columns without the others
      Buffer finite = x;
      x.set(1 * kK + 13, NAN);
      x.set(3 * kK + 100, INFINITY);
      x.set(4 * kK + 100, NAN);
      const Buffer got = multiply(x, kM, w, nullptr, threshold);
      const Buffer want = multiply(finite, kM, w, nullptr, threshold);
      for (int64_t i = 0; i < kM * kN; ++i) {
        const int64_t m = i / kN, n = i % kN;
        if (m == 1 || m == 4 || (m == 3 && (threshold == 0 || n == 5))) {
          ASSERT_TRUE(std::isnan(got.get(i))) << name(dtype) << " " << threshold << " at " << m << ", " << n;
        } else {
          const float value = m == 3 ? (n % 2 ? INFINITY : -INFINITY) : want.get(i);
          ASSERT_EQ(got.get(i), value) << name(dtype) << " " << threshold << " at " << m << ", " << n;
        }
      }
    }
  }
}

TEST(LinearInt8, RefusesBadArgumentsBeforeWriting) {
  Weight w(3, 4, 1);
  Buffer x = test::random_buffer(DType::Float32, 8, 1), bias = test::random_buffer(DType::Float32, 3, 1);
  Buffer half(DType::Float16, 8), out(DType::Float32, 6);
  std::vector<uint8_t> bytes(static_cast<size_t>(linear_int8_workspace(w.view(), 2, DType::Float32, 6.0F)), 0xCD);
  const TensorView v = view_of(x, {2, 4}), o = view_of(out, {2, 3}), s = workspace_of(bytes);
  auto refused = [&](ErrorCode code, auto call) {
    const std::string message = test::refusal(code, call);
    EXPECT_NE(message.find("linear_int8"), std::string::npos) << message;
  };
  const auto invalid = ErrorCode::InvalidArgument, type = ErrorCode::InvalidType;
  for (float threshold : {-1.0F, NAN, INFINITY}) {
    refused(invalid, [&] { linear_int8(v, w.view(), {}, threshold, o, s); });
    refused(invalid, [&] { linear_int8_workspace(w.view(), 2, DType::Float32, threshold); });
  }
  for (float scale : {-1.0F, NAN, -INFINITY}) {
    Weight bad = w;
    bad.scales[2] = scale;
    refused(invalid, [&] { linear_int8(v, bad.view(), {}, 6.0F, o, s); });
  }
  refused(invalid, [&] { linear_int8(view_of(x, {4, 2}), w.view(), {}, 6.0F, o, s); });
  refused(invalid, [&] { linear_int8(v, w.view(), view_of(bias, {2}), 6.0F, o, s); });
  refused(invalid, [&] { linear_int8(v, w.view(), {}, 6.0F, view_of(out, {3, 2}), s); });
  refused(invalid, [&] { linear_int8(v, w.view(), {}, 6.0F, o, view_of(bytes, DType::UInt8, {8})); });
  refused(type, [&] { linear_int8(v, w.view(), {}, 6.0F, view_of(half, {2, 3}), s); });
  refused(type, [&] { linear_int8(v, w.view(), view_of(half, {3}), 6.0F, o, s); });
  refused(type, [&] { linear_int8(w.view().codes, w.view(), {}, 6.0F, o, s); });
  refused(type, [&] { linear_int8_workspace(w.view(), 2, DType::Int8, 6.0F); });
  WeightInt8 bad = w.view();
  bad.scales = view_of(w.scales, DType::Float32, {2});
  refused(invalid, [&] { linear_int8(v, bad, {}, 6.0F, o, s); });
  bad = w.view();
  bad.codes = view_of(w.codes, DType::UInt8, {3, 4});
  refused(type, [&] { linear_int8(v, bad, {}, 6.0F, o, s); });
  EXPECT_EQ(out.bytes, Buffer(DType::Float32, 6).bytes);
  EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0xCD; }));
}

}  // namespace
}  // namespace qbits
