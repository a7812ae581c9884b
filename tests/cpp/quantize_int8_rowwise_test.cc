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
using test::rounded;
using test::view_of;
using test::workspace_of;

// Scales, codes and outliers by the definition of int8.h. The float64 quotient rounded to float32 is the float32 one,
// and 127 times it is exact in float64.
void expect_defined(const QuantizedRows& q, const Buffer& x, const std::string& where) {
  std::vector<int32_t> columns;
  for (int64_t k = 0; k < q.cols && q.threshold > 0; ++k) {
    bool outlier = false;
    for (int64_t m = 0; m < q.rows; ++m) outlier |= std::fabs(x.get(m * q.cols + k)) >= q.threshold;
    if (outlier) columns.push_back(static_cast<int32_t>(k));
  }
  ASSERT_EQ(q.columns, columns) << where;
  for (int64_t m = 0; m < q.rows; ++m) {
    float absmax = 0.0F;
    for (int64_t k = 0; k < q.cols; ++k) {
      const float v = std::fabs(x.get(m * q.cols + k));
      if (std::isnan(v) || (std::isinf(v) && q.threshold == 0)) absmax = NAN;
      if (q.threshold == 0 || v < q.threshold) absmax = v > absmax ? v : absmax;
    }
    if (std::isnan(absmax)) {
      ASSERT_EQ(std::bit_cast<uint32_t>(q.scales[m]), 0x7fc00000U) << where << " row " << m;
    } else {
      ASSERT_EQ(q.scales[m], absmax) << where << " row " << m;
    }
    for (int64_t k = 0; k < q.cols; ++k) {
      const bool outlier = std::binary_search(columns.begin(), columns.end(), k);
      const double quotient = static_cast<float>(static_cast<double>(x.get(m * q.cols + k)) / absmax);
      const double code = absmax > 0 && !outlier ? std::nearbyint(127 * quotient) : 0;
      ASSERT_EQ(q.codes[m * q.cols + k], code) << where << " row " << m << " column " << k;
    }
  }
}

void expect_dequantized(QuantizedRows& q, DType dtype, const std::string& where) {
  Buffer out(dtype, q.rows * q.cols);
  dequantize_int8_rowwise(view_of(q.codes, DType::Int8, {q.rows, q.cols}), view_of(q.scales, DType::Float32, {q.rows}),
                          view_of(out, {q.rows, q.cols}));
  for (int64_t i = 0; i < q.rows * q.cols; ++i) {
    const float product = static_cast<float>(q.codes[i]) * q.scales[i / q.cols];
    const float value = product * (1.0F / 127.0F);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(out.get(i))) << where << " i " << i;
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(out.get(i)), std::bit_cast<uint32_t>(rounded(value, dtype)))
          << where << " i " << i;
    }
  }
}

std::string describe(int64_t rows, int64_t cols, DType dtype, float threshold) {
  return std::to_string(rows) + "x" + std::to_string(cols) + " " + std::string(name(dtype)) + " threshold " +
         std::to_string(threshold);
}

TEST(QuantizeInt8Rowwise, ByDefinitionForEveryShape) {
  for (auto [rows, cols] : {std::pair<int64_t, int64_t>{1, 1},
                            {3, 2},
                            {2, 15},
                            {4, 16},
                            {5, 17},
                            {1, 63},
                            {7, 127},
                            {3, 128},
                            {2, 129},
                            {5, 300},
                            {9, 1001},
                            {2, 4097},
                            {70, 33}}) {
    for (DType dtype : kFloats) {
      for (float threshold : {0.0F, 1e-30F, 1.0F, 2.5F, 6.0F}) {
        Buffer x = test::random_buffer(dtype, rows * cols, static_cast<uint32_t>(rows * cols));
        QuantizedRows q(x, rows, cols, threshold);
        const std::string where = describe(rows, cols, dtype, threshold);
        expect_defined(q, x, where);
        for (DType out : kFloats) expect_dequantized(q, out, where);
      }
    }
  }
}

TEST(QuantizeInt8Rowwise, NearTiesAndTies) {
  // Quotients about every (k + 1/2) / 127, of which only 1/2 is a tie: with absmax 1 they are the elements.
  constexpr int64_t kCols = 127 * 2 * 7 + 1;
  for (float absmax : {1.0F, 3.0F, 0x1p-126F, 0x1p100F}) {
    Buffer x(DType::Float32, kCols);
    int64_t i = 0;
    for (int k = 0; k < 127; ++k) {
      for (float sign : {1.0F, -1.0F}) {
        float v = static_cast<float>(k + 0.5) / 127.0F * absmax;
        for (int step = 0; step < 3; ++step) v = std::nextafter(v, 0.0F);
        for (int step = 0; step < 7; ++step, v = std::nextafter(v, INFINITY)) x.set(i++, sign * v);
      }
    }
    x.set(i, absmax);
    expect_defined(QuantizedRows(x, 1, kCols, 0), x, "absmax " + std::to_string(absmax));
  }
  Buffer x(DType::Float16, 3);
  x.set(0, 2.0F);
  x.set(1, 1.0F);
  x.set(2, -1.0F);
  const QuantizedRows q(x, 1, 3, 0);
  EXPECT_EQ(q.codes, (std::vector<int8_t>{127, 64, -64}));  // 63.5 to even
}

TEST(QuantizeInt8Rowwise, ZerosSubnormalsAndLargest) {
  constexpr int64_t kCols = 150;
  Buffer x = test::random_buffer(DType::Float32, 6 * kCols, 3);
  for (int64_t k = 0; k < kCols; ++k) {
    x.set(k, k % 2 ? 0.0F : -0.0F);
    x.set(kCols + k, std::ldexp(static_cast<float>(k - 70), -149));
    x.set(2 * kCols + k, k == 40 ? -0x1p-149F : 0.0F);
    x.set(3 * kCols + k, x.get(3 * kCols + k) * 0x1p-127F);
    x.set(4 * kCols + k, k % 3 ? 0x1.fffffep127F : -0x1.fffffep126F);
  }
  for (float threshold : {0.0F, 6.0F, 0x1.fffffep127F, 0x1p-149F}) {
    QuantizedRows q(x, 6, kCols, threshold);
    expect_defined(q, x, "threshold " + std::to_string(threshold));
    for (DType dtype : kFloats) expect_dequantized(q, dtype, "threshold " + std::to_string(threshold));
  }
  for (DType dtype : {DType::BFloat16, DType::Float16}) {
    const float unit = dtype == DType::Float16 ? 0x1p-24F : 0x1p-133F;
    Buffer small(dtype, 2 * kCols);
    for (int64_t k = 0; k < 2 * kCols; ++k) small.set(k, static_cast<float>(k % kCols - 75) * unit);
    expect_defined(QuantizedRows(small, 2, kCols, 0), small, std::string(name(dtype)));
  }
}

TEST(QuantizeInt8Rowwise, AnElementEqualToTheThresholdIsAnOutlier) {
  for (DType dtype : kFloats) {
    Buffer x(dtype, 3 * 140);
    for (int64_t i = 0; i < 3 * 140; ++i) x.set(i, 1.0F);
    x.set(139, 6.0F);
    x.set(140 + 7, -6.0F);
    x.set(280 + 5, dtype == DType::BFloat16 ? 5.96875F : 5.99609375F);  // the number below 6
    x.set(280 + 7, 3.0F);
    const QuantizedRows q(x, 3, 140, 6.0F);
    EXPECT_EQ(q.columns, (std::vector<int32_t>{7, 139}));
    EXPECT_EQ(q.scales, (std::vector<float>{1.0F, 1.0F, x.get(280 + 5)}));
    EXPECT_EQ(q.codes[280 + 7], 0);
    expect_defined(q, x, std::string(name(dtype)));
  }
}

TEST(QuantizeInt8Rowwise, AbsmaxOfElementsBelowTheThresholdInOutlierColumns) {
  Buffer x(DType::Float32, 2 * 3);
  for (int64_t i = 0; i < 6; ++i) x.set(i, 1.0F);
  x.set(0, 5.0F);  // below the threshold, in a column that row 1 makes one of outliers
  x.set(3, 10.0F);
  const QuantizedRows q(x, 2, 3, 6.0F);
  EXPECT_EQ(q.scales, (std::vector<float>{5.0F, 1.0F}));
  EXPECT_EQ(q.codes, (std::vector<int8_t>{0, 25, 25, 0, 127, 127}));
}

TEST(QuantizeInt8Rowwise, NonFiniteElementsStayInTheirRows) {
  for (DType dtype : kFloats) {
    for (float threshold : {0.0F, 6.0F}) {
      for (int64_t at : {0, 100, 299}) {
        Buffer x = test::random_buffer(dtype, 6 * 300, 4);
        x.set(300 + at, NAN);
        x.set(600 + at, INFINITY);
        x.set(900 + (at + 7) % 300, -INFINITY);
        x.set(1200 + at, INFINITY);
        x.set(1200 + (at + 1) % 300, NAN);
        QuantizedRows q(x, 6, 300, threshold);
        const std::string where = describe(6, 300, dtype, threshold);
        expect_defined(q, x, where);
        EXPECT_EQ(q.count, threshold > 0 ? 2 : 0) << where;
        EXPECT_EQ(std::isnan(q.scales[2]), threshold == 0) << where;
        expect_dequantized(q, dtype, where);
      }
    }
  }
}

TEST(QuantizeInt8Rowwise, EveryElementAnOutlier) {
  Buffer x(DType::BFloat16, 5 * 131);
  for (int64_t i = 0; i < 5 * 131; ++i) x.set(i, i % 2 ? 8.0F : -INFINITY);
  const QuantizedRows q(x, 5, 131, 6.0F);
  EXPECT_EQ(q.count, 131);
  expect_defined(q, x, "all");
}

TEST(QuantizeInt8Rowwise, SameBitsForAnyNumberOfThreads) {
  const int threads = num_threads();
  Buffer x = test::random_buffer(DType::BFloat16, 301 * 1003, 2);
  for (float threshold : {0.0F, 3.5F}) {
    set_num_threads(1);
    const QuantizedRows one(x, 301, 1003, threshold);
    set_num_threads(3);
    const QuantizedRows q(x, 301, 1003, threshold);
    EXPECT_EQ(q.codes, one.codes);
    EXPECT_EQ(q.scales, one.scales);
    EXPECT_EQ(q.columns, one.columns);
    expect_defined(q, x, "threads");
  }
  set_num_threads(threads);
}

TEST(QuantizeInt8Rowwise, NoRowsOrNoColumns) {
  Buffer x(DType::Float32, 0);
  for (float threshold : {0.0F, 6.0F}) {
    const QuantizedRows no_rows(x, 0, 5, threshold);
    EXPECT_EQ(no_rows.count, 0);
    const QuantizedRows no_cols(x, 3, 0, threshold);
    EXPECT_EQ(no_cols.count, 0);
    EXPECT_EQ(no_cols.scales, (std::vector<float>{0, 0, 0}));
  }
  QuantizedRows none(x, 3, 0, 0);
  expect_dequantized(none, DType::Float32, "none");
}

TEST(DequantizeInt8Rowwise, LargeOutputsAreStreamedCorrectly) {
  Buffer x = test::random_buffer(DType::Float32, 1100 * 4112, 11);
  QuantizedRows q(x, 1100, 4112, 0);
  for (DType dtype : kFloats) expect_dequantized(q, dtype, "streamed");
}

TEST(DequantizeInt8Rowwise, EveryCode) {
  Buffer x = test::random_buffer(DType::Float32, 4 * 256, 1);
  QuantizedRows q(x, 4, 256, 0);
  for (int64_t i = 0; i < 4 * 256; ++i) q.codes[i] = static_cast<int8_t>(i % 256 - 128);
  q.scales = {1.7F, 0x1.fffffep127F, 0x1p-140F, INFINITY};
  for (DType dtype : kFloats) expect_dequantized(q, dtype, std::string(name(dtype)));
}

TEST(QuantizeInt8Rowwise, RefusesBadArgumentsBeforeWriting) {
  Buffer x = test::random_buffer(DType::Float32, 6, 1);
  std::vector<int8_t> codes(6, 99);
  std::vector<float> scales(2, -7);
  std::vector<int32_t> columns(3, -7), count(1, -7);
  std::vector<uint8_t> bytes(64, 0xCD);
  const TensorView v = view_of(x, {2, 3}), c = view_of(codes, DType::Int8, {2, 3});
  const TensorView s = view_of(scales, DType::Float32, {2}), w = workspace_of(bytes);
  const OutlierColumns good{.columns = view_of(columns, DType::Int32, {3}), .count = view_of(count, DType::Int32, {1})};
  auto refused = [&](ErrorCode code, auto call) {
    const std::string message = test::refusal(code, call);
    EXPECT_NE(message.find("quantize_int8_rowwise"), std::string::npos) << message;
  };
  const auto invalid = ErrorCode::InvalidArgument, type = ErrorCode::InvalidType;
  for (float threshold : {-1.0F, NAN, INFINITY}) {
    refused(invalid, [&] { quantize_int8_rowwise(v, threshold, c, s, good, w); });
    refused(invalid, [&] { quantize_int8_rowwise(v, threshold, c, s, {}, w); });
    refused(invalid, [&] { quantize_int8_rowwise_workspace(2, 3, threshold, {}); });
  }
  refused(invalid, [&] { quantize_int8_rowwise(v, 0.0F, c, s, good, w); });
  refused(invalid, [&] { quantize_int8_rowwise(v, 6.0F, c, s, {}, w); });
  refused(invalid, [&] { quantize_int8_rowwise(v, 0.0F, view_of(codes, DType::Int8, {3, 2}), s, {}, w); });
  refused(invalid, [&] { quantize_int8_rowwise(v, 0.0F, c, view_of(scales, DType::Float32, {1}), {}, w); });
  refused(type, [&] { quantize_int8_rowwise(v, 0.0F, view_of(codes, DType::UInt8, {2, 3}), s, {}, w); });
  refused(type, [&] { quantize_int8_rowwise(v, 0.0F, c, view_of(scales, DType::Int32, {2}), {}, w); });
  refused(type, [&] { quantize_int8_rowwise(c, 0.0F, c, s, {}, w); });
  OutlierColumns bad = good;
  bad.columns = view_of(columns, DType::Int32, {2});
  refused(invalid, [&] { quantize_int8_rowwise(v, 6.0F, c, s, bad, w); });
  bad = good;
  bad.count = view_of(columns, DType::Int32, {3});
  refused(invalid, [&] { quantize_int8_rowwise(v, 6.0F, c, s, bad, w); });
  bad.count = view_of(count, DType::Float32, {1});
  refused(type, [&] { quantize_int8_rowwise(v, 6.0F, c, s, bad, w); });

  refused(type, [&] { dequantize_int8_rowwise(v, s, v); });
  refused(type, [&] { dequantize_int8_rowwise(c, s, c); });
  refused(invalid, [&] { dequantize_int8_rowwise(c, view_of(scales, DType::Float32, {1}), v); });
  refused(invalid, [&] { dequantize_int8_rowwise(c, s, view_of(x, {3, 2})); });

  EXPECT_EQ(codes, std::vector<int8_t>(6, 99));
  EXPECT_EQ(scales, std::vector<float>(2, -7));
  EXPECT_EQ(columns, std::vector<int32_t>(3, -7));
  EXPECT_EQ(count[0], -7);
  EXPECT_EQ(bytes, std::vector<uint8_t>(64, 0xCD));
  EXPECT_EQ(x.bytes, test::random_buffer(DType::Float32, 6, 1).bytes);
}

}  // namespace
}  // namespace qbits
