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
using test::workspace_of;

struct Product {
  int64_t m, n;
  std::vector<int32_t> dots;
  std::vector<float> row_scales, column_scales;

  Product(int64_t rows, int64_t cols, uint32_t seed) : m(rows), n(cols) {
    std::mt19937 engine(seed);
    for (int64_t i = 0; i < m * n; ++i) dots.push_back(static_cast<int32_t>(engine()) >> engine() % 32);
    for (int64_t i = 0; i < m; ++i) row_scales.push_back(1e-9F * static_cast<float>(engine()));
    for (int64_t i = 0; i < n; ++i) column_scales.push_back(1e-11F * static_cast<float>(engine()));
  }

  Buffer out(DType dtype, Buffer* bias) {
    Buffer result(dtype, m * n);
    std::optional<TensorView> bias_view;
    if (bias != nullptr) bias_view = view_of(*bias, {n});
    dequantize_int8_product(view_of(dots, DType::Int32, {m, n}), view_of(row_scales, DType::Float32, {m}),
                            view_of(column_scales, DType::Float32, {n}), bias_view, view_of(result, {m, n}));
    return result;
  }
};

void expect_defined(Product& p, DType dtype, Buffer* bias) {
  const Buffer out = p.out(dtype, bias);
  for (int64_t i = 0; i < p.m * p.n; ++i) {
    const float a = p.row_scales[i / p.n] / 127.0F;
    const float b = p.column_scales[i % p.n] / 127.0F;
    const float c = bias != nullptr ? bias->get(i % p.n) : 0.0F;
    const float inner = std::fma(a, static_cast<float>(p.dots[i]), 0.0F);
    const float want = test::rounded(std::fma(b, inner, c), dtype);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(out.get(i)));
      continue;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(out.get(i)), std::bit_cast<uint32_t>(want))
        << name(dtype) << " [" << p.m << ", " << p.n << "] at " << i;
  }
}

TEST(DequantizeInt8Product, EveryDtypeAndShape) {
  for (auto [m, n] : {std::pair<int64_t, int64_t>{1, 1},
                      {3, 5},
                      {7, 16},
                      {2, 31},
                      {5, 511},
                      {4, 512},
                      {3, 513},
                      {1, 4097},
                      {300, 33},
                      {65, 1040}}) {
    Product p(m, n, static_cast<uint32_t>(m * n));
    for (DType dtype : kFloats) {
      Buffer bias = test::random_buffer(dtype, n, 3);
      expect_defined(p, dtype, nullptr);
      expect_defined(p, dtype, &bias);
    }
  }
}

TEST(DequantizeInt8Product, LargeOutputsAreStreamedCorrectly) {
  Product p(1100, 4112, 1);
  for (DType dtype : kFloats) expect_defined(p, dtype, nullptr);
}

TEST(DequantizeInt8Product, ExtremeNumbers) {
  Product p(6, 40, 1);
  p.row_scales = {0.0F, 0x1p-149F, 0x1.fffffep127F, INFINITY, NAN, -3.0F};
  p.column_scales[3] = 0x1.fffffep127F;
  p.column_scales[4] = NAN;
  p.column_scales[5] = -0.0F;
  for (int64_t i = 0; i < 6; ++i)
    p.dots[i * 40 + 7] = INT32_MIN, p.dots[i * 40 + 8] = INT32_MAX, p.dots[i * 40 + 9] = 0;
  for (DType dtype : kFloats) {
    Buffer bias = test::random_buffer(dtype, 40, 3);
    bias.set(11, -0.0F);
    bias.set(12, INFINITY);
    expect_defined(p, dtype, nullptr);
    expect_defined(p, dtype, &bias);
  }
}

// The steps of linear_int8 one by one.
TEST(DequantizeInt8Product, AfterIgemmTheBitsOfLinearInt8) {
  constexpr int64_t kM = 67, kN = 45, kK = 1003;
  Product p(kM, kN, 1);
  std::vector<int8_t> weight;
  std::mt19937 engine(2);
  for (int64_t i = 0; i < kN * kK; ++i) weight.push_back(static_cast<int8_t>(engine() % 256 - 128));
  const TensorView w = view_of(weight, DType::Int8, {kN, kK});
  const WeightInt8 rows{.codes = w, .scales = view_of(p.column_scales, DType::Float32, {kN})};
  for (DType dtype : kFloats) {
    Buffer x = test::random_buffer(dtype, kM * kK, 3), bias = test::random_buffer(dtype, kN, 4);
    test::QuantizedRows q(x, kM, kK, 0.0F);
    p.row_scales = q.scales;
    const TensorView codes = view_of(q.codes, DType::Int8, {kM, kK});
    std::vector<uint8_t> bytes(static_cast<size_t>(
        std::max(igemm_workspace(codes, false, w, true), linear_int8_workspace(rows, kM, dtype, 0.0F))));
    igemm(codes, false, w, true, view_of(p.dots, DType::Int32, {kM, kN}), workspace_of(bytes));
    Buffer want(dtype, kM * kN);
    linear_int8(view_of(x, {kM, kK}), rows, view_of(bias, {kN}), 0.0F, view_of(want, {kM, kN}), workspace_of(bytes));
    EXPECT_EQ(p.out(dtype, &bias).bytes, want.bytes) << name(dtype);
    linear_int8(view_of(x, {kM, kK}), rows, {}, 0.0F, view_of(want, {kM, kN}), workspace_of(bytes));
    EXPECT_EQ(p.out(dtype, nullptr).bytes, want.bytes) << name(dtype);
  }
}

TEST(DequantizeInt8Product, SameBitsForAnyNumberOfThreads) {
  const int threads = num_threads();
  Product p(301, 1003, 1);
  set_num_threads(1);
  const Buffer one = p.out(DType::BFloat16, nullptr);
  set_num_threads(3);
  EXPECT_EQ(p.out(DType::BFloat16, nullptr).bytes, one.bytes);
  set_num_threads(threads);
}

TEST(DequantizeInt8Product, NoRowsOrNoColumns) {
  EXPECT_TRUE(Product(0, 5, 1).out(DType::Float32, nullptr).bytes.empty());
  EXPECT_TRUE(Product(5, 0, 1).out(DType::Float32, nullptr).bytes.empty());
}

TEST(DequantizeInt8Product, RefusesBadArgumentsBeforeWriting) {
  Product p(2, 3, 1);
  Buffer out(DType::BFloat16, 6), bias(DType::BFloat16, 3), floats(DType::Float32, 6);
  const TensorView d = view_of(p.dots, DType::Int32, {2, 3}), r = view_of(p.row_scales, DType::Float32, {2});
  const TensorView c = view_of(p.column_scales, DType::Float32, {3}), o = view_of(out, {2, 3});
  auto refused = [&](ErrorCode code, auto call) {
    const std::string message = test::refusal(code, call);
    EXPECT_NE(message.find("dequantize_int8_product"), std::string::npos) << message;
  };
  const auto invalid = ErrorCode::InvalidArgument, type = ErrorCode::InvalidType;
  refused(type, [&] { dequantize_int8_product(view_of(floats, {2, 3}), r, c, {}, o); });
  refused(type, [&] { dequantize_int8_product(d, view_of(out, {2}), c, {}, o); });
  refused(type, [&] { dequantize_int8_product(d, r, view_of(bias, {3}), {}, o); });
  refused(type, [&] { dequantize_int8_product(d, r, c, view_of(floats, {3}), o); });
  refused(type, [&] { dequantize_int8_product(d, r, c, {}, d); });
  refused(invalid, [&] { dequantize_int8_product(d, c, c, {}, o); });
  refused(invalid, [&] { dequantize_int8_product(d, r, r, {}, o); });
  refused(invalid, [&] { dequantize_int8_product(d, r, c, view_of(bias, {2}), o); });
  refused(invalid, [&] { dequantize_int8_product(d, r, c, {}, view_of(out, {3, 2})); });
  refused(invalid, [&] { dequantize_int8_product(view_of(p.dots, DType::Int32, {}), r, c, {}, o); });
  EXPECT_EQ(out.bytes, Buffer(DType::BFloat16, 6).bytes);
}

}  // namespace
}  // namespace qbits
